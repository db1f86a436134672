"""The table of a patching sweep (section 4.2 of the paper): what each patch regains, of what loss.

Shapes: Q questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from treft.attribution.forcing import OwnStates
from treft.attribution.perturb_table import IncoherentRate
from treft.attribution.sweep import SweepCell
from treft.attribution.sweep_plan import BASE, FINETUNED
from treft.attribution.sweep_run import Sweep
from treft.statistics.bootstrap import NUM_RESAMPLES, Loss
from treft.statistics.compare import difference, estimate, holm
from treft.statistics.intervals import Clusters, Interval
from treft.statistics.measures import COHERENT_ABOVE, AlignmentScore
from treft.statistics.records import ScoredAnswer
from treft.statistics.results import Difference, Estimate


@dataclass(frozen=True)
class SweepRowFigures:
    """One patch, or one of the unpatched models.

    Attributes:
        name: of the cell.
        group: which part of the sweep it belongs to; `models` for the two unpatched ones.
        source: whose states went in; empty for the unpatched models.
        is_control: whether no effect, or a smaller one, is expected.
        stream_layer: whose residual stream was patched, on the layer curve.
        num_tokens: mean number of tokens replaced in a prompt.
        alignment: mean over all answers.
        incoherent: percent of answers.
        gain: alignment less the finetuned model's, paired by question; None for itself.
        share: of what the finetune lost, regained by the patch (1 is all); None for the unpatched
            models, and where nothing was surely lost.
    """

    name: str
    group: str
    source: str
    is_control: bool
    stream_layer: int | None
    num_tokens: float
    alignment: Estimate
    incoherent: Estimate | None
    gain: Difference | None
    share: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            **vars(self),
            "alignment": self.alignment.to_dict(),
            "incoherent": None if self.incoherent is None else self.incoherent.to_dict(),
            "gain": None if self.gain is None else self.gain.to_dict(),
            "share": None if self.share is None else self.share._asdict(),
        }


@dataclass(frozen=True)
class SweepTable:
    """All rows as one judge sees them.

    Attributes:
        judge: Inspect model name, or `oracle`.
        loss: alignment of the finetuned model less the base's, paired by question.
        own_states: the control that must change nothing.
        rows: the unpatched models first.
    """

    judge: str
    loss: Difference
    own_states: OwnStates
    rows: tuple[SweepRowFigures, ...]

    @property
    def curve(self) -> tuple[SweepRowFigures, ...]:
        """Rows of the layer curve, from the first layer."""
        return tuple(row for row in self.rows if row.stream_layer is not None)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "judge": self.judge,
            "loss": self.loss.to_dict(),
            "own_states": self.own_states.to_dict(),
            "rows": [row.to_dict() for row in self.rows],
        }


def sweep_table(
    sweep: Sweep,
    cells: Sequence[SweepCell],
    judge: str,
    *,
    coherent_above: float = COHERENT_ABOVE,
) -> SweepTable:
    """The table of a sweep as one judge sees it.

    Gains over the finetuned model carry p-values adjusted by Holm's method for all patches.

    Args:
        sweep: what came out.
        cells: the patches, in the order of the rows.
        judge: whose judgements.
        coherent_above: coherence above which an answer counts as coherent.

    Raises:
        DataError: the judge scored no answer of a cell.
    """
    measure = AlignmentScore(judge)
    scored = sweep.scored
    loss = difference(measure, scored[FINETUNED], scored[BASE])
    rows = [_row(None, name, scored, judge, coherent_above, 0.0) for name in (BASE, FINETUNED)]
    for cell in cells:
        num_tokens = sweep.num_tokens[cell.name]
        rows.append(_row(cell, cell.name, scored, judge, coherent_above, num_tokens))
    return SweepTable(judge, loss, sweep.own_states, tuple(_adjusted(rows)))


def share_regained(
    patched: Sequence[ScoredAnswer],
    finetuned: Sequence[ScoredAnswer],
    base: Sequence[ScoredAnswer],
    judge: str,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """(patched - finetuned) / (base - finetuned) in mean alignment, bootstrapped over questions.

    Returns:
        None where the finetune did not surely (95 %) lose anything: the ratio means nothing there.

    Raises:
        DataError: the judge looked at no answer of an arm.
    """
    means = [question_means(judge, answers) for answers in (patched, finetuned, base)]
    shared = sorted(set.intersection(*(set(each) for each in means)))
    if not shared:
        return None
    mine, tuned, whole = (np.array([each[id] for id in shared]) for each in means)
    loss = Loss.of(whole - tuned, num_resamples=num_resamples, seed=seed)
    return loss.share(mine - tuned).interval if loss.is_sure else None


def question_means(judge: str, answers: Sequence[ScoredAnswer]) -> dict[str, float]:
    """Mean alignment by question."""
    clusters: Clusters | None = AlignmentScore(judge).tally(answers).clusters
    if clusters is None:
        return {}
    means = clusters.totals / clusters.sizes
    return dict(zip(clusters.questions, means.tolist(), strict=True))


def _row(
    cell: SweepCell | None,
    name: str,
    scored: Mapping[str, Sequence[ScoredAnswer]],
    judge: str,
    coherent_above: float,
    num_tokens: float,
) -> SweepRowFigures:
    measure, answers = AlignmentScore(judge), scored[name]
    incoherent = IncoherentRate(judge, coherent_above)
    known = incoherent.tally(answers).clusters is not None
    gain = share = None
    if cell is not None:
        gain = difference(measure, answers, scored[FINETUNED])
        share = share_regained(answers, scored[FINETUNED], scored[BASE], judge)
    return SweepRowFigures(
        name=name,
        group="models" if cell is None else cell.group,
        source="" if cell is None else cell.source,
        is_control=cell is not None and cell.is_control,
        stream_layer=None if cell is None else cell.stream_layer,
        num_tokens=num_tokens,
        alignment=estimate(measure, answers),
        incoherent=estimate(incoherent, answers) if known else None,
        gain=gain,
        share=share,
    )


def _adjusted(rows: Sequence[SweepRowFigures]) -> list[SweepRowFigures]:
    gains = [row.gain for row in rows if row.gain is not None]
    p_values = iter(holm([gain.p_value for gain in gains]))
    return [
        row if row.gain is None else replace(row, gain=replace(row.gain, p_holm=next(p_values)))
        for row in rows
    ]
