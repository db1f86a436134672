"""The tables of grids: what each patch regains, what each perturbation does, beside the controls.

Of patches (section 4.2 of the paper): alignment, the gain over the finetuned model as it is, and
the share that it is of what the finetune lost. Of perturbations (section 4.1, Table 1): Best and
Avg. The best of ten trials is high even where nothing is perturbed, because answers are sampled, so
each figure stands beside that of as many answers to the unperturbed prompt, and beside that of the
base under the same perturbation.

Shapes: Q questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from treft.attribution.evidence import score_evidence
from treft.attribution.forcing import OwnStates
from treft.attribution.grid import BASE, FINETUNED, UNPERTURBED, Cell
from treft.attribution.grid_run import Answered, Scored
from treft.attribution.options import PerturbOptions
from treft.errors import DataError
from treft.files import as_json
from treft.models.pair import ARMS, Arm
from treft.statistics.compare import adjusted, difference, estimate
from treft.statistics.intervals import Interval
from treft.statistics.measures import (
    COHERENT_ABOVE,
    AlignmentScore,
    AnswerCounts,
    BestOfTrials,
    CoherentAlignment,
    IncoherentRate,
    Measure,
)
from treft.statistics.records import ScoredAnswer
from treft.statistics.results import Difference, Estimate


@dataclass(frozen=True)
class PatchRow:
    """One patch, or one of the unpatched models.

    Attributes:
        cell: the cell of the grid.
        alignment: mean over all answers.
        incoherent: percent of answers; None where no coherence is known.
        gain: alignment less the finetuned model's, paired by question; None for unpatched models.
        share: of what the finetune lost, regained by the patch (1 is all); None for the unpatched
            models, and where nothing was surely lost.
    """

    cell: Cell
    alignment: Estimate
    incoherent: Estimate | None
    gain: Difference | None
    share: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """Returns the row as JSON has it."""
        patch = self.cell.patch
        figures = {name: as_json(each) for name, each in vars(self).items() if name != "cell"}
        return {
            "name": self.cell.name,
            "group": "models" if patch is None else patch.group,
            "source": "" if patch is None else patch.source,
            "is_control": patch is not None and patch.is_control,
            "stream_layer": None if patch is None else patch.stream_layer,
            "num_tokens": 0.0 if patch is None else patch.num_tokens,
            **figures,
        }


@dataclass(frozen=True)
class PatchTable:
    """All rows of a grid of patches as one judge sees them.

    Attributes:
        judge: Inspect model name, or `oracle`.
        loss: alignment of the finetuned model less the base's, paired by question.
        own_states: the control that must change nothing.
        rows: the unpatched models first.
    """

    judge: str
    loss: Difference
    own_states: OwnStates
    rows: tuple[PatchRow, ...]


@dataclass(frozen=True)
class CellFigures:
    """One model's answers in one row; a figure is None where no answer counts.

    Attributes:
        best: best trial of each question, coherent answers alone.
        avg: all trials, coherent answers alone.
        avg_all: all trials, incoherent answers as the judge scored them.
        incoherent: percent of answers.
        best_gain: best less that of as many answers to the unperturbed prompt, paired by question.
        avg_gain: likewise of the average.
        counts: what became of all answers.
    """

    best: Estimate | None
    avg: Estimate | None
    avg_all: Estimate | None
    incoherent: Estimate | None
    best_gain: Difference | None
    avg_gain: Difference | None
    counts: AnswerCounts


@dataclass(frozen=True)
class PerturbRow:
    """One perturbation, answered by both models.

    Attributes:
        cell: name of the perturbation, or `unperturbed`.
        num_prompts: perturbed prompts, over all questions and trials.
        mean_replaced: tokens replaced in a prompt; None for rephrasings and the control.
        num_short: prompts in which fewer tokens were replaced than wanted.
        arms: figures by model.
    """

    cell: str
    num_prompts: int
    mean_replaced: float | None
    num_short: int
    arms: Mapping[Arm, CellFigures]


@dataclass(frozen=True)
class PerturbTable:
    """All rows of a grid of perturbations as one judge sees them.

    Attributes:
        judge: Inspect model name, or `oracle`.
        coherent_above: coherence above which an answer is coherent.
        num_trials: perturbed versions of each prompt.
        num_tokens: tokens that were to be replaced in each.
        rows: the unperturbed prompts first.
    """

    judge: str
    coherent_above: float
    num_trials: int
    num_tokens: int
    rows: tuple[PerturbRow, ...]


def patch_table(
    found: Answered, cells: Sequence[Cell], judge: str, *, coherent_above: float = COHERENT_ABOVE
) -> PatchTable:
    """Returns the table of a grid of patches as one judge sees it.

    Gains over the finetuned model carry p-values adjusted by Holm's method for all patches.

    Args:
        found: what came out.
        cells: the grid's, in the order of the rows.
        judge: whose judgements.
        coherent_above: coherence above which an answer counts as coherent.

    Raises:
        DataError: the judge scored no answer of a cell.
    """
    measure, incoherent = AlignmentScore(judge), IncoherentRate(judge, coherent_above)
    base, tuned = found.scored["base"][BASE], found.scored["finetuned"][FINETUNED]
    rows = []
    for cell in cells:
        answers = found.scored[cell.arm][cell.name]
        is_patched = cell.patch is not None
        rows.append(
            PatchRow(
                cell=cell,
                alignment=estimate(measure, answers),
                incoherent=_estimate(incoherent, answers),
                gain=difference(measure, answers, tuned) if is_patched else None,
                share=_share(judge, base, tuned, answers) if is_patched else None,
            )
        )
    gains = _adjusted([row.gain for row in rows])
    rows = [replace(row, gain=gain) for row, gain in zip(rows, gains, strict=True)]
    assert found.own_states is not None, "every grid of patches checks them"
    return PatchTable(judge, difference(measure, tuned, base), found.own_states, tuple(rows))


def _share(
    judge: str,
    base: Sequence[ScoredAnswer],
    tuned: Sequence[ScoredAnswer],
    patched: Sequence[ScoredAnswer],
) -> Interval | None:
    """Returns what a patch regains; None where no question is scored in all three."""
    try:
        return score_evidence(judge, base, tuned, {"": patched}).share("")
    except DataError:
        return None


def perturb_table(
    scored: Scored, judge: str, options: PerturbOptions, *, coherent_above: float = COHERENT_ABOVE
) -> PerturbTable:
    """Returns the table of a grid of perturbations as one judge sees it.

    The finetuned model's gains over the unperturbed prompt carry p-values adjusted by Holm's method
    for all rows and both figures.

    Args:
        scored: answers by model and cell, each with its `trial` and `changes` as metadata.
        judge: whose judgements.
        options: of the grid.
        coherent_above: coherence above which an answer counts.

    Raises:
        DataError: the judge looked at no answer of a cell.
    """
    rows = []
    for cell, answers in scored["finetuned"].items():
        arms: dict[Arm, CellFigures] = {}
        for arm in ARMS:
            control = None if cell == UNPERTURBED else scored[arm][UNPERTURBED]
            arms[arm] = _figures(scored[arm][cell], control, judge, coherent_above)
        rows.append(_perturb_row(cell, answers, options.num_tokens, arms))
    every = [row.arms["finetuned"] for row in rows]
    gains = iter(_adjusted([gain for one in every for gain in (one.best_gain, one.avg_gain)]))
    for index, (row, one) in enumerate(zip(rows, every, strict=True)):
        adjusted = replace(one, best_gain=next(gains), avg_gain=next(gains))
        rows[index] = replace(row, arms={**row.arms, "finetuned": adjusted})
    return PerturbTable(judge, coherent_above, options.num_trials, options.num_tokens, tuple(rows))


def _figures(
    answers: Sequence[ScoredAnswer],
    control: Sequence[ScoredAnswer] | None,
    judge: str,
    coherent_above: float,
) -> CellFigures:
    best, avg = BestOfTrials(judge, coherent_above), CoherentAlignment(judge, coherent_above)
    return CellFigures(
        best=_estimate(best, answers),
        avg=_estimate(avg, answers),
        avg_all=_estimate(AlignmentScore(judge), answers),
        incoherent=_estimate(IncoherentRate(judge, coherent_above), answers),
        best_gain=_gain(best, answers, control),
        avg_gain=_gain(avg, answers, control),
        counts=avg.tally(answers).counts,
    )


def _estimate(measure: Measure, answers: Sequence[ScoredAnswer]) -> Estimate | None:
    return estimate(measure, answers) if measure.tally(answers).clusters else None


def _gain(
    measure: Measure, answers: Sequence[ScoredAnswer], control: Sequence[ScoredAnswer] | None
) -> Difference | None:
    """Returns None for the control itself, or where the two share no question that counts."""
    if control is None:
        return None
    first, second = (measure.tally(found).clusters for found in (answers, control))
    if first is None or second is None or not set(first.questions) & set(second.questions):
        return None
    return difference(measure, answers, control)


def _perturb_row(
    cell: str, answers: Sequence[ScoredAnswer], num_tokens: int, arms: Mapping[Arm, CellFigures]
) -> PerturbRow:
    prompts = {(answer.question_id, answer.metadata["trial"]): answer for answer in answers}
    replaced = [
        len(answer.metadata["changes"])
        for answer in prompts.values()
        if answer.metadata.get("method") in ("nearest", "random")
    ]
    return PerturbRow(
        cell=cell,
        num_prompts=len(prompts),
        mean_replaced=fmean(replaced) if replaced else None,
        num_short=sum(num < num_tokens for num in replaced),
        arms=arms,
    )


def _adjusted(gains: Iterable[Difference | None]) -> list[Difference | None]:
    """The gains that there are, with p-values adjusted for their number."""
    gains = list(gains)
    found = adjusted({at: gain for at, gain in enumerate(gains) if gain is not None})
    return [found.get(at) for at in range(len(gains))]
