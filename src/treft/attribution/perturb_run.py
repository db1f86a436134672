"""Run a perturbation study cell by cell, and go on where it stopped.

In the study's folder lie

    plan.json        what decides the answers; a folder holds one study
    prompts.jsonl    every perturbed prompt; another study can ask them again
    answers/ARM/CELL.jsonl   answers of one model to one row of the table
    scored.jsonl     all answers with all judgements

Each file appears whole, and what is there is not done again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from treft.attribution.perturb import PerturbedPrompt, perturb_tokens
from treft.attribution.perturb_plan import UNPERTURBED, PerturbPlan
from treft.attribution.perturb_prompts import (
    check_prompts,
    read_prompts,
    rephrased_prompts,
    write_prompts,
)
from treft.attribution.rephrase import rephrase
from treft.attribution.scoring import num_judge_calls, panel_for, score_answers
from treft.data.messages import read_rows
from treft.errors import DataError
from treft.files import write_whole
from treft.models.pair import ARMS, Arm, ModelPair, answer_tokens
from treft.models.sampling import mixed_seed
from treft.statistics.records import ScoredAnswer

logger = logging.getLogger(__name__)

PROMPTS = "prompts.jsonl"
ANSWERS = "answers"
SCORED = "scored.jsonl"

Progress = Callable[[str, int, int], None]
"""Called as (what is being done, steps done, steps in all)."""

ScoredCells = dict[Arm, dict[str, list[ScoredAnswer]]]
"""Answers by model and cell."""


@dataclass(frozen=True)
class PerturbCost:
    """What is still to be paid, at most.

    Attributes:
        num_answers: to generate.
        num_rephrasings: calls of the rephraser, when none fails.
        num_judge_calls: of paid judges; what they said before is in Inspect's cache and costs
            nothing.
    """

    num_answers: int
    num_rephrasings: int
    num_judge_calls: int

    @property
    def total(self) -> int:
        """Answers and calls together."""
        return self.num_answers + self.num_rephrasings + self.num_judge_calls

    def __str__(self) -> str:
        """In words."""
        parts = [f"{self.num_answers:,} answers"]
        if self.num_rephrasings:
            parts.append(f"{self.num_rephrasings:,} rephrasings")
        if self.num_judge_calls:
            parts.append(f"{self.num_judge_calls:,} judge calls")
        return ", ".join(parts)


def perturb_cost(
    plan: PerturbPlan, folder: Path, judges: Sequence[str], *, replayed: bool = False
) -> PerturbCost:
    """What a study costs from here.

    Args:
        plan: of the study.
        folder: of the study, new or begun.
        judges: names, as `panel_for` gives them.
        replayed: the prompts come from a file, so nothing is rephrased.
    """
    num_cells = len(ARMS) * len(plan.request.cells)
    num_left = num_cells - num_finished(plan, folder)
    rephrased = replayed or (folder / PROMPTS).is_file()
    return PerturbCost(
        num_left * plan.answers_per_cell,
        0 if rephrased else plan.num_rephrasings,
        num_judge_calls(num_cells * plan.answers_per_cell, judges),
    )


def num_finished(plan: PerturbPlan, folder: Path) -> int:
    """Cells of all models whose answers are there."""
    return sum(_path(folder, arm, cell).is_file() for arm in ARMS for cell in plan.request.cells)


def run_perturbation(
    plan: PerturbPlan,
    pair: ModelPair,
    folder: Path,
    *,
    judges: Sequence[str] = (),
    prompts: Path | None = None,
    batch_size: int = 32,
    progress: Progress = lambda label, done, total: None,
) -> ScoredCells:
    """Perturb, answer and judge; the base answers the very same prompts with the same seeds.

    Args:
        plan: of the study.
        pair: the models.
        folder: for its files; a study that was begun there goes on.
        judges: Inspect model names, or `oracle`; see `panel_for`.
        prompts: perturbed prompts of another study to ask again; None makes new ones.
        batch_size: prompts run together.
        progress: told about every batch.

    Raises:
        ConfigError: the folder holds another study, the two models are equal, a judge or the
            rephraser cannot be loaded, or the judge does not fit the questions.
        DataError: a prompt is too long, or a file is damaged or does not fit.
    """
    panel_for(plan.questions, judges)
    _check_lengths(plan, pair, {f"question {id!r}": each for id, each in plan.chats.items()})
    pair.check_differ(next(iter(plan.chats.values())).input_ids)
    plan.claim(folder, pair)
    perturbed = _perturbed(plan, pair, folder, prompts)
    versions = {
        f"{each.perturbation.name} version {each.trial} of question {each.question_id!r}": each
        for each in perturbed
    }
    _check_lengths(plan, pair, versions)
    rows = {cell: list(_rows(plan, perturbed, cell)) for cell in plan.request.cells}
    answers = {
        (arm, cell): _answers(plan, pair, arm, cell, rows[cell], folder, batch_size, progress)
        for arm in ARMS
        for cell in plan.request.cells
    }
    progress("judging", 0, 1)
    scored = _scored(plan, rows, answers, judges)
    progress("judging", 1, 1)
    found = (one for cells in scored.values() for answers in cells.values() for one in answers)
    write_whole(folder / SCORED, _lines(map(asdict, found)))
    return scored


class _Tokens(Protocol):
    """What has token ids: a rendered prompt, or a perturbed one."""

    @property
    def input_ids(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class _Row:
    """One answer to generate.

    Attributes:
        question_id: whose prompt.
        trial: which version of it, from 1.
        sample: which answer to that version, from 1.
        seed: of the answer.
        input_ids: (T,) the prompt.
        perturbed: the version; None for the prompt as it is.
    """

    question_id: str
    trial: int
    sample: int
    seed: int
    input_ids: tuple[int, ...]
    perturbed: PerturbedPrompt | None

    @property
    def key(self) -> dict[str, Any]:
        """What its line in the file of answers begins with."""
        names = ("question_id", "trial", "sample", "seed")
        return {name: getattr(self, name) for name in names}


def _check_lengths(plan: PerturbPlan, pair: ModelPair, prompts: Mapping[str, _Tokens]) -> None:
    if pair.num_positions is not None and prompts:
        lengths = {name: prompt.input_ids for name, prompt in prompts.items()}
        plan.check_lengths(lengths, pair.num_positions)


def _perturbed(
    plan: PerturbPlan, pair: ModelPair, folder: Path, source: Path | None
) -> list[PerturbedPrompt]:
    """The study's perturbed prompts: its own from before, those of another study, or new ones."""
    path = folder / PROMPTS
    if path.is_file():
        return _read(plan, path)
    if source is not None:
        found = _read(plan, source)
    else:
        request = plan.request
        found = list(
            perturb_tokens(
                plan.tokenizer, pair.embedding, plan.chats, request.perturbations, request.options
            )
        )
        if request.rephraser is not None:
            num_trials = request.options.num_trials
            rephrasings = rephrase(plan.questions, request.rephraser, num_trials)
            for (id, trial), reason in rephrasings.failures.items():
                logger.warning("question %s, trial %d was not rephrased: %s", id, trial, reason)
            found += rephrased_prompts(rephrasings, plan.render)
    write_prompts(path, found)
    return found


def _read(plan: PerturbPlan, path: Path) -> list[PerturbedPrompt]:
    """The prompts in a file that the plan asks, each checked against its question.

    Raises:
        DataError: some are missing, or do not fit.
    """
    wanted = set(plan.request.perturbations)
    found = [
        prompt
        for prompt in read_prompts(path)
        if prompt.perturbation in wanted and prompt.question_id in plan.chats
    ]
    check_prompts(path, found, plan.chats, plan.render, plan.tokenizer)
    there = {(prompt.perturbation, prompt.question_id, prompt.trial) for prompt in found}
    trials = range(1, plan.request.options.num_trials + 1)
    for each in plan.request.perturbations:
        every = [(id, trial) for id in plan.chats for trial in trials]
        lacking = [(id, trial) for id, trial in every if (each, id, trial) not in there]
        # Some rephrasings may have failed when the file was made.
        if len(lacking) > (len(every) - 1 if each.method == "rephrase" else 0):
            id, trial = lacking[0]
            raise DataError(
                f"{path}: has no {each.name} version {trial} of question {id!r}: ask for what the "
                "file has, or make new prompts."
            )
    return [prompt for prompt in found if prompt.trial in trials]


def _rows(plan: PerturbPlan, perturbed: Sequence[PerturbedPrompt], cell: str) -> Iterator[_Row]:
    """What is answered in one cell, in order."""
    versions: list[tuple[str, int, _Tokens, PerturbedPrompt | None]]
    if cell == UNPERTURBED:
        trials = range(1, plan.request.options.num_trials + 1)
        versions = [(id, trial, chat, None) for id, chat in plan.chats.items() for trial in trials]
    else:
        versions = [
            (prompt.question_id, prompt.trial, prompt, prompt)
            for prompt in perturbed
            if prompt.perturbation.name == cell
        ]
    for id, trial, tokens, prompt in versions:
        for sample in range(1, plan.request.num_samples + 1):
            seed = mixed_seed(plan.request.options.seed, trial, sample, *tokens.input_ids)
            yield _Row(id, trial, sample, seed, tokens.input_ids, prompt)


def _answers(
    plan: PerturbPlan,
    pair: ModelPair,
    arm: Arm,
    cell: str,
    rows: Sequence[_Row],
    folder: Path,
    batch_size: int,
    progress: Progress,
) -> list[str]:
    """Answers of one model to one cell: from its file, or generated and written there."""
    path = _path(folder, arm, cell)
    if path.is_file():
        return _kept(path, rows)
    label = f"{arm}, {cell}"
    progress(label, 0, len(rows))
    with pair.use(arm) as model:
        found = answer_tokens(
            model,
            plan.tokenizer,
            [row.input_ids for row in rows],
            [row.seed for row in rows],
            sampling=plan.request.sampling,
            max_new_tokens=plan.request.max_new_tokens,
            batch_size=batch_size,
            on_batch=lambda done: progress(label, done, len(rows)),
        )
    pairs = zip(rows, found, strict=True)
    write_whole(path, _lines({**row.key, "answer": answer} for row, answer in pairs))
    return found


def _kept(path: Path, rows: Sequence[_Row]) -> list[str]:
    """The answers in a file, if they are to these very prompts.

    Raises:
        DataError: they are not.
    """
    found = [row for row, _ in read_rows(path)]
    keys = [{name: row.get(name) for name in rows[0].key} for row in found]
    if keys != [row.key for row in rows] or not all(
        isinstance(r.get("answer"), str) for r in found
    ):
        raise DataError(f"{path}: does not answer this study's prompts: remove it to answer anew.")
    return [row["answer"] for row in found]


def _scored(
    plan: PerturbPlan,
    rows: Mapping[str, Sequence[_Row]],
    answers: Mapping[tuple[Arm, str], Sequence[str]],
    judges: Sequence[str],
) -> ScoredCells:
    """Judge all answers at once; each knows which version of its prompt it answers."""
    questions = {question.id: question for question in plan.questions}
    num_samples = plan.request.num_samples
    every = [(arm, cell, row) for arm, cell in answers for row in rows[cell]]
    found = score_answers(
        [questions[row.question_id] for _, _, row in every],
        [answer for texts in answers.values() for answer in texts],
        epochs=[(row.trial - 1) * num_samples + row.sample for _, _, row in every],
        scope=plan.request.scope,
        judges=judges,
    )
    scored: ScoredCells = {arm: {cell: [] for cell in plan.request.cells} for arm in ARMS}
    for (arm, cell, row), answer in zip(every, found, strict=True):
        about = {"arm": arm, "cell": cell, **_about(row)}
        scored[arm][cell].append(replace(answer, metadata=about))
    return scored


def _about(row: _Row) -> dict[str, Any]:
    prompt = row.perturbed
    about: dict[str, Any] = {"trial": row.trial, "sample": row.sample, "seed": row.seed}
    if prompt is not None:
        about |= {"region": prompt.region, "method": prompt.method}
        about |= {"changes": [list(change) for change in prompt.changes], "words": prompt.words}
        about["num_replaceable"] = prompt.num_replaceable
    return about


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _path(folder: Path, arm: Arm, cell: str) -> Path:
    return folder / ANSWERS / arm / f"{cell}.jsonl"
