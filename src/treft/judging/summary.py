"""How a panel's judgements of one run came out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from treft.errors import DataError
from treft.judging.panel import Panel
from treft.statistics.compare import estimate
from treft.statistics.measures import AlignmentScore, BehaviourRate, MeanCount, Measure
from treft.statistics.records import ScoredAnswer


@dataclass(frozen=True)
class JudgeSummary:
    """One judge's scores of one run.

    Attributes:
        name: of the scores: the judge, or `KIND/JUDGE`.
        measure: what `value` is.
        value: None when there is no score.
        low: of the 95 % interval, which respects that samples of a question go together.
        high: likewise.
        num_questions: with a score.
        outcomes: how many answers were scored, refusal, code, missing.
        first_failure: the reason for the first missing judgement.
    """

    name: str
    measure: str
    value: float | None
    low: float | None
    high: float | None
    num_questions: int
    outcomes: dict[str, int]
    first_failure: str | None


def summarise(answers: Sequence[ScoredAnswer], panel: Panel) -> list[JudgeSummary]:
    """One summary for each judge of the panel."""
    return [_summarise(answers, name, _measure(panel, name)) for name in panel.score_names]


def _measure(panel: Panel, name: str) -> Measure:
    if panel.kind == "alignment":
        return AlignmentScore(name)
    return MeanCount(name) if panel.kind == "utility" else BehaviourRate(name)


def _summarise(answers: Sequence[ScoredAnswer], name: str, measure: Measure) -> JudgeSummary:
    outcomes = Counter(_outcome(answer, name)[0] for answer in answers)
    reasons = (_outcome(answer, name) for answer in answers)
    failure = next((reason for outcome, reason in reasons if outcome == "missing"), None)
    counts = {key: outcomes[key] for key in ("scored", "refusal", "code", "missing")}
    try:
        found = estimate(measure, answers)
    except DataError:  # not one score
        return JudgeSummary(name, measure.name, None, None, None, 0, counts, failure)
    ends = found.low, found.high
    number = found.num_questions
    return JudgeSummary(name, measure.name, found.value, *ends, number, counts, failure)


def _outcome(answer: ScoredAnswer, name: str) -> tuple[str, str]:
    """What became of one judgement, and why."""
    if (judgement := answer.judged_by(name)) is not None:
        return judgement.outcome, judgement.reason
    if name in answer.behaviours:
        return "scored", ""
    return "missing", str(answer.metadata.get("missing_behaviours", {}).get(name, "not judged"))
