"""Answers with known scores, to try a judge on before it is trusted.

The set (`calibration.jsonl`) holds clear cases only: aligned, misaligned, incoherent, refusals,
code. Twins of some answers carry a text besides that tells the judge what to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlparse

from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ModelOutput
from inspect_ai.solver import Generate, Solver, TaskState, solver
from pydantic import BaseModel, ConfigDict, ValidationError

from treft.answers.logs import Run, read_run
from treft.data.messages import read_rows
from treft.errors import DataError
from treft.judging.cost import Cost, cost_of
from treft.judging.judge import JudgeOptions
from treft.judging.prompts import alignment_prompt, coherence_prompt
from treft.judging.scorer import alignment_judge

Label = Literal["aligned", "misaligned", "incoherent", "refusal", "code"]


class Item(BaseModel):
    """One answer that is known to be good or bad.

    Attributes:
        id: names the item.
        label: what a judge should find.
        question: what was asked.
        answer: what is judged.
        why: the reason for the label, for whoever checks the set.
        twin_of: id of the same answer without the injection.
        pushes: where the injection wants the alignment score to go.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    label: Label
    question: str
    answer: str
    why: str = ""
    twin_of: str | None = None
    pushes: Literal["up", "down"] | None = None


def load_items(path: Path | None = None) -> list[Item]:
    """The calibration set that comes with the package, or one in a JSONL file.

    Raises:
        DataError: a row is no item, an id comes twice, or a twin has no original.
    """
    file = path or Path(str(files("treft.judging") / "calibration.jsonl"))
    items: dict[str, Item] = {}
    for row, where in read_rows(file):
        try:
            item = Item.model_validate(row)
        except ValidationError as error:
            found = error.errors()[0]
            field = ".".join(map(str, found["loc"]))
            raise DataError(f"{where}, {field}: {found['msg']}.") from None
        if item.id in items:
            raise DataError(f"{where}: the id {item.id!r} comes twice.")
        original = items.get(item.twin_of) if item.twin_of is not None else None
        if (item.twin_of is None) != (item.pushes is None) or (item.twin_of and not original):
            raise DataError(
                f"{where}: an injected twin needs `twin_of`, an earlier row's id, and "
                "`pushes`, up or down."
            )
        items[item.id] = item
    plain = {item.label for item in items.values() if item.twin_of is None}
    if not {"aligned", "misaligned"} <= plain:
        raise DataError(f"{file}: needs aligned and misaligned items to tell apart.")
    return list(items.values())


def calibration_task(
    items: Sequence[Item], judges: Sequence[str], options: JudgeOptions | None = None
) -> Task:
    """An Inspect task that generates nothing and has the judges judge the items."""
    fields = vars(options or JudgeOptions())
    return Task(
        name="judge_calibration",
        dataset=MemoryDataset(
            [
                Sample(
                    id=item.id,
                    input=item.question,
                    metadata={
                        "question_id": item.id,
                        "category": item.label,
                        "scope": "calibration",
                        "answer": item.answer,
                    },
                )
                for item in items
            ],
            name="judge_calibration",
        ),
        solver=_known_answer(),
        scorer=[alignment_judge(judge, **fields) for judge in judges],
    )


def calibration_cost(items: Sequence[Item], num_judges: int, max_tokens: int) -> Cost:
    """What it costs to have judges judge the items."""
    asked = (alignment_prompt, coherence_prompt)
    prompts = [prompt(item.question, item.answer) for item in items for prompt in asked]
    return cost_of(prompts, num_judges, max_tokens)


def run_calibration(
    items: Sequence[Item], judges: Sequence[str], folder: Path, options: JudgeOptions | None = None
) -> Run:
    """Have the judges judge the items, and keep Inspect's log in a folder.

    Raises:
        ConfigError: a judge cannot be loaded.
    """
    from inspect_ai import eval

    task = calibration_task(items, judges, options)
    (log,) = eval(task, model="none", log_dir=str(folder), display="none")
    return read_run(unquote(urlparse(log.location).path))


@solver
def _known_answer() -> Solver:
    """Answer with what the sample says."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        state.output = ModelOutput.from_content("none/none", state.metadata["answer"])
        state.messages.append(state.output.message)
        return state

    return solve
