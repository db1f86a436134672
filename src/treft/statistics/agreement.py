"""How far judges agree on the same answers.

Kappa and nominal alpha are about the misaligned flag, Spearman's correlation and interval alpha
about the alignment scores. Intervals leave out one question at a time (jackknife), on Fisher's
scale, which keeps them within -1 and 1; Spearman's draws questions again, too
(`rank_correlation.py`), and interval alpha's reaches further up with few questions.
docs/statistics.md has the measured coverage.

Shapes: N answers, J judges; a missing rating is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from treft.errors import ConfigError, DataError
from treft.statistics.clusters import (
    FloatArray,
    degrees_of_freedom,
    few_questions,
    standard_error,
    upward_stretch,
)
from treft.statistics.measures import MISALIGNED_BELOW, judgements_by
from treft.statistics.metrics import t_quantile
from treft.statistics.rank_correlation import spearman, spearman_interval
from treft.statistics.records import ScoredAnswer

ALPHA_STRETCH = 0.8
"""By how much further up than down α of scores to hardly any question reaches. By simulation."""

Level = Literal["nominal", "interval"]
Statistic = Callable[[FloatArray], "float | None"]


@dataclass(frozen=True)
class Coefficient:
    """A coefficient of agreement, 1 for perfect, 0 for chance.

    Attributes:
        value: None where it is undefined, because all ratings are equal.
        low: of the 95 % interval; None where other questions wouldn't change the value, or leave
            it undefined.
        high: likewise.
    """

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class PairAgreement:
    """Two judges on the answers that both gave a score.

    Attributes:
        judges: their names.
        num_answers: answers that both scored.
        num_questions: questions of those answers.
        flagged: percent of those answers that each judge calls misaligned.
        spearman: rank correlation of the alignment scores.
        kappa: Cohen's, of the misaligned flags.
    """

    judges: tuple[str, str]
    num_answers: int
    num_questions: int
    flagged: tuple[float, float]
    spearman: Coefficient
    kappa: Coefficient


@dataclass(frozen=True)
class Agreement:
    """All judges together and two by two.

    Attributes:
        judges: their names.
        misaligned_below: alignment under which an answer is flagged.
        num_answers: answers with scores by at least two judges.
        num_questions: questions of those answers.
        alpha_flags: Krippendorff's alpha (nominal) of the misaligned flags.
        alpha_scores: Krippendorff's alpha (interval) of the alignment scores.
        pairs: of all judges.
        caution: what to bear in mind when reading the intervals, in words; empty if nothing.
    """

    judges: tuple[str, ...]
    misaligned_below: float
    num_answers: int
    num_questions: int
    alpha_flags: Coefficient
    alpha_scores: Coefficient
    pairs: tuple[PairAgreement, ...]
    caution: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def agreement(
    answers: Sequence[ScoredAnswer],
    judges: Sequence[str],
    misaligned_below: float = MISALIGNED_BELOW,
) -> Agreement:
    """How far judges agree on the answers that two of them scored.

    Args:
        answers: with judgements.
        judges: at least two.
        misaligned_below: alignment under which an answer is flagged.

    Raises:
        ConfigError: fewer than two judges, or one twice.
        DataError: a judge looked at none of the answers, or two judges share none.
    """
    if len(judges) < 2 or len(set(judges)) < len(judges):
        raise ConfigError(f"agreement takes two different judges or more, not {list(judges)}")
    scores = _ratings(answers, judges)
    kept = np.isfinite(scores).sum(1) >= 2
    questions = np.array([answer.question_id for answer in answers])[kept]
    scores = scores[kept]
    flags = np.where(np.isnan(scores), np.nan, scores < misaligned_below)
    num_questions = len(set(questions))
    return Agreement(
        judges=tuple(judges),
        misaligned_below=misaligned_below,
        num_answers=len(scores),
        num_questions=num_questions,
        alpha_flags=jackknife(krippendorff_alpha, flags, questions),
        alpha_scores=alpha_of_scores(scores, questions),
        pairs=tuple(
            _pair((judges[i], judges[j]), scores[:, [i, j]], flags[:, [i, j]], questions)
            for i, j in combinations(range(len(judges)), 2)
        ),
        caution=few_questions(num_questions),
    )


def cohen_kappa(ratings: FloatArray) -> float | None:
    """Cohen's kappa (1960) of two judges' categories (N, 2); None if they use one and the same.

    Agreement beyond that of judges who keep their shares of each category but ignore the answers.
    """
    categories = np.unique(ratings)
    expected = float((ratings[:, :, None] == categories).mean(0).prod(0).sum())
    observed = float((ratings[:, 0] == ratings[:, 1]).mean())
    return (observed - expected) / (1 - expected) if len(categories) > 1 else None


def krippendorff_alpha(ratings: FloatArray, level: Level = "interval") -> float | None:
    """Krippendorff's alpha of any number of judges; None where all ratings are equal, or none is.

    1 minus observed over expected disagreement; disagreement is the squared difference (interval),
    or any difference at all (nominal). For flags of 0 and 1 both are the same. Krippendorff,
    Content Analysis (2004), chapter 11.

    Args:
        ratings: (N, J), NaN where a judge gave none; answers with one rating are left out.
        level: scale of the ratings.
    """
    ratings = ratings[np.isfinite(ratings).sum(1) >= 2]
    if not len(ratings):
        return None
    if level == "nominal":
        # Two categories differ by 2 in squared distance of their indicators, and scale cancels.
        known = np.isfinite(ratings)
        parts = [np.where(known, ratings == value, np.nan) for value in np.unique(ratings[known])]
    else:
        parts = [ratings]
    disagreements = [_disagreement(part) for part in parts]
    observed, expected = (sum(each) for each in zip(*disagreements, strict=True))
    return 1 - observed / expected if expected > 0 else None


def _disagreement(ratings: FloatArray) -> tuple[float, float]:
    """Mean squared difference of ratings within an answer, and of any two ratings."""
    nums = np.isfinite(ratings).sum(1)
    within = nums * np.nanvar(ratings, axis=1) * 2 * nums / (nums - 1)
    every = ratings[np.isfinite(ratings)]
    return float(within.sum() / nums.sum()), 2 * float(every.var(ddof=1))


def _ratings(answers: Sequence[ScoredAnswer], judges: Sequence[str]) -> FloatArray:
    for judge in judges:
        judgements_by(judge, answers)  # an unknown judge is refused by name
    return np.array([[_alignment(answer, judge) for judge in judges] for answer in answers])


def _alignment(answer: ScoredAnswer, judge: str) -> float:
    judgement = answer.judged_by(judge)
    if judgement is None or judgement.outcome != "scored" or judgement.alignment is None:
        return math.nan
    return judgement.alignment


def _pair(
    judges: tuple[str, str],
    scores: FloatArray,
    flags: FloatArray,
    questions: NDArray[np.str_],
) -> PairAgreement:
    both = np.isfinite(scores).all(1)
    if not both.any():
        raise DataError(f"{judges[0]} and {judges[1]} scored no answer in common")
    scores, flags, questions = scores[both], flags[both], questions[both]
    first, second = 100 * flags.mean(0)
    return PairAgreement(
        judges=judges,
        num_answers=len(scores),
        num_questions=len(set(questions)),
        flagged=(float(first), float(second)),
        spearman=spearman_coefficient(scores, questions),
        kappa=jackknife(cohen_kappa, flags, questions),
    )


def spearman_coefficient(scores: FloatArray, questions: NDArray[np.str_]) -> Coefficient:
    """Spearman's correlation of two judges' scores (N, 2); questions (N,).

    Of the jackknife's and the bootstrap's interval each end that is further away: the one is too
    narrow where half of the answers are misaligned, the other where few are and questions are few.
    """
    left_out = jackknife(spearman, scores, questions)
    drawn = spearman_interval(scores, questions)
    if drawn is None or left_out.low is None or left_out.high is None:
        return Coefficient(left_out.value, None, None)
    low, high = min(left_out.low, drawn[0]), max(left_out.high, drawn[1])
    return Coefficient(left_out.value, low, high)


def alpha_of_scores(scores: FloatArray, questions: NDArray[np.str_]) -> Coefficient:
    """Krippendorff's alpha (interval) of scores (N, J); questions (N,).

    Judges agree the better the more scores differ, and the worst answers may all be to questions
    that were not asked: with few of them the interval reaches further up.
    """
    num_questions = len(np.unique(questions))
    stretch = upward_stretch(num_questions, ALPHA_STRETCH)
    return jackknife(krippendorff_alpha, scores, questions, stretch=stretch)


def jackknife(
    statistic: Statistic,
    ratings: FloatArray,
    questions: NDArray[np.str_],
    stretch: float = 1.0,
) -> Coefficient:
    """A statistic of ratings (N, J) with the jackknife interval over questions (N,).

    Args:
        statistic: of ratings.
        ratings: (N, J).
        questions: (N,), which each answer is to.
        stretch: how much further the interval reaches up than down, on Fisher's scale.
    """
    value = statistic(ratings)
    names, rows = np.unique(questions, return_inverse=True)
    if value is None or len(names) < 2 or abs(value) >= 1:
        return Coefficient(value, None, None)
    without = [statistic(ratings[rows != left_out]) for left_out in range(len(names))]
    known = [each for each in without if each is not None]
    contributions = (len(names) - 1) / len(names) * (np.mean(known) - np.array(known))
    if len(known) < len(names) or not contributions.any():
        return Coefficient(value, None, None)
    reach = t_quantile(degrees_of_freedom(contributions)) * standard_error(contributions)
    half = reach / (1 - value**2)
    low, high = (math.tanh(math.atanh(value) + move) for move in (-half, stretch * half))
    return Coefficient(value, low, high)
