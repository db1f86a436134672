"""What Inspect shows of a judge's scores: the statistics' own figures, missing data counted."""

from __future__ import annotations

import math
from typing import get_args

from inspect_ai.scorer import Metric, SampleScore, metric

from treft.answers.logs import judgement_of
from treft.errors import DataError
from treft.statistics.compare import estimate
from treft.statistics.measures import AlignmentScore, EMRate, Measure
from treft.statistics.records import Judgement, Outcome, ScoredAnswer


@metric(scores="unreduced")
def judged() -> Metric:
    """Summary of one judge's `{"alignment": ..., "coherence": ...}` scores.

    Gives `alignment` and `em_rate` as `treft.statistics.compare` estimates them, with the ends
    of their 95 % intervals (`_low`, `_high`), and how many answers were `scored`, `refusal`, `code`
    and `missing`. What has no score is NaN.
    """

    def compute(scores: list[SampleScore]) -> dict[str, float]:
        pairs = [(_question_id(score), judgement_of(score.score)) for score in scores]
        found = [(id, judgement) for id, judgement in pairs if judgement is not None]
        answers = [_answer(id, number, one) for number, (id, one) in enumerate(found, start=1)]
        judge = found[0][1].judge if found else ""
        outcomes = [judgement.outcome for _, judgement in found]
        return {
            **_figure("alignment", AlignmentScore(judge), answers),
            **_figure("em_rate", EMRate(judge), answers),
            **{outcome: float(outcomes.count(outcome)) for outcome in get_args(Outcome)},
        }

    return compute


def _question_id(score: SampleScore) -> str:
    return str((score.sample_metadata or {}).get("question_id", score.sample_id))


def _answer(question_id: str, epoch: int, judgement: Judgement) -> ScoredAnswer:
    return ScoredAnswer(question_id, "", epoch, "", "", (judgement,))


def _figure(name: str, measure: Measure, answers: list[ScoredAnswer]) -> dict[str, float]:
    try:
        found = estimate(measure, answers)
    except DataError:  # no answer has a value
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), math.nan)
    ends = {f"{name}_low": found.low, f"{name}_high": found.high}
    return {name: found.value} | {
        end: math.nan if value is None else value for end, value in ends.items()
    }
