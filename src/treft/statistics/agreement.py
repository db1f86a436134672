"""How far judges agree on the same answers.

Kappa and nominal alpha are about the misaligned flag, Spearman's correlation and interval alpha
about the alignment scores. Intervals leave out one question at a time (jackknife), on Fisher's
scale, which keeps them within -1 and 1. docs/statistics.md has the measured coverage.

Shapes: N answers, J judges; a missing rating is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from treft.errors import ConfigError, DataError
from treft.statistics.intervals import Z_95, FloatArray, Interval, few_questions, t_interval
from treft.statistics.measures import MISALIGNED_BELOW, judgements_by
from treft.statistics.records import ScoredAnswer

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


def agreement(
    answers: Sequence[ScoredAnswer],
    judges: Sequence[str],
    misaligned_below: float = MISALIGNED_BELOW,
) -> Agreement:
    """Returns how far judges agree on the answers that two of them scored.

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
        alpha_scores=jackknife(krippendorff_alpha, scores, questions),
        pairs=tuple(
            _pair((judges[i], judges[j]), scores[:, [i, j]], flags[:, [i, j]], questions)
            for i, j in combinations(range(len(judges)), 2)
        ),
        caution=few_questions(num_questions),
    )


def cohen_kappa(ratings: FloatArray) -> float | None:
    """Returns Cohen's kappa (1960) of two judges' flags (N, 2); None if they use one and the same.

    Agreement beyond that of judges who keep their shares of each flag but ignore the answers.
    """
    first, second = ratings.T
    observed, (one, other) = float((first == second).mean()), ratings.mean(0)
    expected = float(one * other + (1 - one) * (1 - other))
    return (observed - expected) / (1 - expected) if expected < 1 else None


def krippendorff_alpha(ratings: FloatArray) -> float | None:
    """Returns Krippendorff's alpha of any number of judges' scores; None where all are equal.

    1 minus observed over expected disagreement, the mean squared difference of two ratings of an
    answer over that of any two: alpha of interval data. Of flags of 0 and 1 it is that of nominal
    data, too. Krippendorff, Content Analysis (2004), chapter 11.

    Args:
        ratings: (N, J), NaN where a judge gave none; answers with one rating are left out.
    """
    known = np.isfinite(ratings)
    ratings = ratings[known.sum(1) >= 2]
    every = ratings[np.isfinite(ratings)]
    if len(every) == 0 or np.ptp(every) == 0:
        return None
    nums = np.isfinite(ratings).sum(1)
    within = nums * np.nanvar(ratings, axis=1) * nums / (nums - 1)
    return 1 - float(within.sum() / nums.sum() / every.var(ddof=1))


def spearman(scores: FloatArray) -> float | None:
    """Returns Spearman's correlation of two judges' scores (N, 2); None if a judge is constant."""
    if len(scores) < 2 or (np.ptp(scores, axis=0) == 0).any():
        return None
    return float(stats.spearmanr(*scores.T).statistic)


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
        spearman=jackknife(spearman, scores, questions),
        kappa=jackknife(cohen_kappa, flags, questions),
    )


def jackknife(
    statistic: Statistic, ratings: FloatArray, questions: NDArray[np.str_]
) -> Coefficient:
    """Returns a coefficient with its jackknife interval over questions, on Fisher's scale.

    One question at a time is left out (Efron and Stein 1981), and the quantile is that of Student's
    t with C - 1 degrees of freedom. There is no interval where other questions would leave the
    coefficient undefined or change nothing.

    Args:
        statistic: Of ratings.
        ratings: (N, J).
        questions: The question that each answer is to (N,).
    """
    value = statistic(ratings)
    names, rows = np.unique(questions, return_inverse=True)
    if value is None or len(names) < 2 or abs(value) >= 1:
        return Coefficient(value, None, None)
    without = [statistic(ratings[rows != left_out]) for left_out in range(len(names))]
    known = [each for each in without if each is not None]
    if len(known) < len(names):
        return Coefficient(value, None, None)
    # Pseudo-values: what each question adds to the coefficient.
    moved = (len(names) - 1) / len(names) * (np.mean(known) - np.array(known))
    found = t_interval(math.atanh(value), moved / (1 - value**2))
    if found is None:
        return Coefficient(value, None, None)
    return Coefficient(value, math.tanh(found.low), math.tanh(found.high))


EDGE = 1e-9
"""0 and 1 themselves solve the interval's equation where the observed area is there."""


def auroc(positive: Sequence[float], negative: Sequence[float]) -> Interval:
    """Chance that a positive item scores above a negative one, ties counting half; 95 % interval.

    Newcombe's score interval (2006, his method 5): all areas θ from which the observed one lies no
    more than 1.96 standard errors away, with the standard error that θ itself implies (Hanley and
    McNeil 1982, group sizes replaced by their mean). DeLong's interval and the bootstrap have no
    width at 1, which is where good judges are.

    Args:
        positive: scores of at least one item.
        negative: likewise.
    """
    sizes = len(positive), len(negative)
    area = float(stats.mannwhitneyu(positive, negative).statistic) / (sizes[0] * sizes[1])

    def beyond(theta: float) -> float:
        return (area - theta) ** 2 - Z_95**2 * _variance(theta, *sizes)

    # Negative beside the observed area, positive at the far bound: each end is a root between.
    inside = min(max(area, EDGE), 1 - EDGE)
    low = 0.0 if area == 0 else float(optimize.brentq(beyond, 0.0, inside))
    high = 1.0 if area == 1 else float(optimize.brentq(beyond, inside, 1.0))
    return Interval(area, low, high)


def _variance(area: float, num_positive: int, num_negative: int) -> float:
    """Returns the variance of the area, for scores distributed as negative exponentials."""
    others = (num_positive + num_negative) / 2 - 1
    factor = 1 + others * ((1 - area) / (2 - area) + area / (1 + area))
    return area * (1 - area) * factor / (num_positive * num_negative)
