"""Run a grid cell by cell, and go on where it stopped.

In the folder lie

    plan.json        all that decides the answers; a folder holds one grid
    steps/           one folder a cell; each appears whole, and what is there is not done again
    prompts.jsonl    every perturbed prompt; another grid can ask them again
    scored.jsonl     all answers with all judgements

"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from treft.attribution.forcing import OwnStates, check_own_states
from treft.attribution.grid import PROMPTS, Cell, Grid
from treft.attribution.perturb import PerturbedPrompt, perturbed_prompts
from treft.attribution.scoring import score_answers
from treft.core.patch_spec import PatchSpec
from treft.files import write_rows
from treft.models.generation import Asked, answer
from treft.models.pair import Arm
from treft.models.sampling import mixed_seed
from treft.progress import Progress, untold
from treft.statistics.records import ScoredAnswer
from treft.steps.store import Store, claim

SCORED = "scored.jsonl"

Scored = Mapping[Arm, Mapping[str, Sequence[ScoredAnswer]]]
"""Answers by model and cell."""


@dataclass(frozen=True)
class Answered:
    """What came out.

    Attributes:
        scored: answers by model and cell.
        own_states: the control of patches that must change nothing; None without patches.
    """

    scored: Scored
    own_states: OwnStates | None


class Row(NamedTuple):
    """One answer to generate.

    Attributes:
        number: of the question, from 0.
        epoch: which answer to it, from 1.
        asked: the prompt and the seed of the answer.
        about: what is kept with the answer, as JSON has it.
    """

    number: int
    epoch: int
    asked: Asked
    about: dict[str, Any]


def run_grid(
    grid: Grid,
    folder: Path,
    *,
    prompts: Path | None = None,
    progress: Progress = untold,
) -> Answered:
    """Check the patching itself, answer every cell, and judge.

    Args:
        grid: what to run.
        folder: for its files; a grid that was begun there goes on.
        prompts: perturbed prompts of another grid to ask again; None makes new ones.
        progress: told about every batch.

    Raises:
        ConfigError: the folder holds something else, patching cannot be trusted on this model, or
            the rephraser cannot be loaded.
        DataError: a perturbed prompt is too long, or a file is damaged or does not fit.
    """
    steps = claim(folder, grid.plan, "plan of a grid")
    own, perturbed = None, []
    if grid.perturb is None:
        own = _own_states(grid, steps)
    else:
        perturbed = perturbed_prompts(grid, grid.perturb, folder / PROMPTS, prompts)
    rows = {cell: _rows(grid, cell, perturbed) for cell in grid.cells}
    answers = {cell: _answers(grid, cell, rows[cell], steps, progress) for cell in grid.cells}
    scored: dict[Arm, dict[str, list[ScoredAnswer]]] = {}
    for number, cell in enumerate(grid.cells):
        progress("judging", number, len(grid.cells))
        of_arm = scored.setdefault(cell.arm, {})
        of_arm[cell.name] = _scored(grid, rows[cell], answers[cell])
    progress("judging", len(grid.cells), len(grid.cells))
    every = [one for cell in grid.cells for one in scored[cell.arm][cell.name]]
    write_rows(folder / SCORED, map(asdict, every))
    return Answered(scored, own)


def _rows(grid: Grid, cell: Cell, perturbed: Sequence[PerturbedPrompt]) -> list[Row]:
    """Returns what is answered in a cell, in order; `perturbed` has the prompts of all cells."""
    about: dict[str, Any] = {"arm": cell.arm, "cell": cell.name}
    changed: dict[str, Any] = {}
    if cell.patch is not None:
        spec = {each.name: getattr(cell.patch, each.name) for each in fields(PatchSpec)}
        changed = {"source": cell.patch.source, "spec": spec}
    versions = [
        (number, trial, chat.input_ids, changed)
        for number, chat in enumerate(grid.chats)
        for trial in range(1, grid.options.num_trials + 1)
    ]
    if cell.perturbation is not None:
        numbers = {question.id: number for number, question in enumerate(grid.questions)}
        versions = [
            (numbers[prompt.question_id], prompt.trial, prompt.input_ids, _changed(prompt))
            for prompt in perturbed
            if prompt.perturbation == cell.perturbation
        ]
    rows, num_samples = [], grid.request.num_samples
    for (number, trial, ids, changed), sample in product(versions, range(1, num_samples + 1)):
        parts = (sample,) if grid.perturb is None else (trial, sample)
        seed = mixed_seed(grid.request.rendering.seed, *parts, *ids)
        drawn = {"trial": trial, "sample": sample, "seed": seed}
        epoch = (trial - 1) * num_samples + sample
        rows.append(Row(number, epoch, Asked(ids, seed), {**about, **drawn, **changed}))
    return rows


def _changed(prompt: PerturbedPrompt) -> dict[str, Any]:
    return {
        "region": prompt.region,
        "method": prompt.method,
        "changes": [list(change) for change in prompt.changes],
        "words": prompt.words,
        "num_replaceable": prompt.num_replaceable,
    }


def _own_states(grid: Grid, steps: Store) -> OwnStates:
    """Returns the control that must change nothing: the finetuned model's own states."""

    def compute() -> dict[str, Any]:
        size = grid.request.rendering.batch_size
        with grid.pair.use("finetuned") as model:
            found = check_own_states(model, grid.tokenizer, grid.chats, grid.patched, size)
        return asdict(found)

    return OwnStates(**steps.keep("own-states", compute))


def _answers(
    grid: Grid, cell: Cell, rows: Sequence[Row], steps: Store, progress: Progress
) -> list[str]:
    """Returns the answers of one cell: from its step, or generated and kept there."""
    label = cell.name if grid.perturb is None else f"{cell.arm}, {cell.name}"

    def compute() -> list[str]:
        patches = None
        if cell.patch is not None:
            numbers = [row.number for row in rows]  # what drawn tokens depend on
            chats = [grid.chats[number] for number in numbers]
            patches = grid.states.repaired(cell.patch).patches(chats, numbers)
        progress(label, 0, len(rows))
        with grid.pair.use(cell.arm) as model:
            found = answer(
                model,
                grid.tokenizer,
                [row.asked for row in rows],
                grid.sampling,
                patches,
                lambda done: progress(label, done, len(rows)),
            )
        return [one.text for one in found]

    found: list[str] = steps.keep(cell.step, compute)
    return found


def _scored(grid: Grid, rows: Sequence[Row], answers: Sequence[str]) -> list[ScoredAnswer]:
    """Judge the answers of one cell; each knows what was done to its prompt."""
    found = score_answers(
        [grid.questions[row.number] for row in rows],
        answers,
        [row.epoch for row in rows],
        grid.request.scope,
        grid.panel,
    )
    return [replace(one, metadata=row.about) for one, row in zip(found, rows, strict=True)]
