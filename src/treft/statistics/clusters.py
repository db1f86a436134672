"""Intervals for figures whose samples come in clusters: several answers to each question.

Answers to one question resemble each other, so 50 questions answered 20 times say less than 1,000
questions would. The unit that is drawn at random is the question: every interval here speaks of
other questions of the same kind. docs/statistics.md has the formulas and the measured coverage.

Shapes: C questions; values are in the figure's own unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from treft.errors import DataError
from treft.statistics.metrics import Interval, t_quantile

FloatArray = NDArray[np.float64]

MANY_QUESTIONS = 50
"""From so many on, nothing is added to an interval for having few."""

FEW_QUESTIONS_STRETCH = 0.4
"""By how much more, with hardly any question, an interval reaches up where nothing bounds what a
question not asked could add; none from 50 questions on, and in a line between. By simulation."""

FEW_QUESTIONS = 30
"""Under this many questions, intervals were measured to stray from 95 % (docs/statistics.md)."""

NO_VARIATION = 1e-9
"""Variance (of percentages) below which all values count as equal."""

ROUNDING = 1e-9
"""Difference, relative where figures exceed 1, below which permutations count as equal."""


@dataclass(frozen=True)
class Clusters:
    """The values behind one figure, summed question by question.

    Attributes:
        questions: ids, sorted.
        totals: sum of each question's values (C,).
        squares: sum of each question's squared values (C,).
        sizes: number of each question's values (C,), none of them 0.
    """

    questions: tuple[str, ...]
    totals: FloatArray
    squares: FloatArray
    sizes: FloatArray

    @classmethod
    def of(cls, values: Iterable[tuple[str, float]]) -> Clusters:
        """From pairs of a question's id and the value of one answer to it.

        Raises:
            DataError: there is no value.
        """
        pairs = list(values)
        if not pairs:
            raise DataError("there is no value to take a mean of")
        questions, rows = np.unique([question for question, _ in pairs], return_inverse=True)
        numbers = np.array([value for _, value in pairs], dtype=np.float64)
        totals, squares, sizes = (
            np.bincount(rows, weights).astype(np.float64)
            for weights in (numbers, numbers**2, np.ones_like(numbers))
        )
        return cls(tuple(map(str, questions)), totals, squares, sizes)

    @property
    def num_questions(self) -> int:
        """C."""
        return len(self.questions)

    @property
    def num_samples(self) -> int:
        """Values in all."""
        return int(self.sizes.sum())

    @property
    def mean(self) -> float:
        """Mean over all values; questions weigh as many values as they have."""
        return float(self.totals.sum() / self.sizes.sum())

    @property
    def variance(self) -> float:
        """Of single values around the mean."""
        return max(0.0, float(self.squares.sum() / self.sizes.sum()) - self.mean**2)

    @property
    def are_flags(self) -> bool:
        """Whether all values are 0 or 100."""
        return bool(np.allclose(100 * self.totals, self.squares))

    @property
    def contributions(self) -> FloatArray:
        """By how much each question moves the mean (C,); they sum to 0."""
        moved: FloatArray = (self.totals - self.mean * self.sizes) / self.sizes.sum()
        return moved

    @property
    def design_effect(self) -> float | None:
        """Clustered variance of the mean over that of as many independent values.

        None where it cannot be known: one question, or all values equal.
        """
        if self.num_questions < 2 or self.variance < NO_VARIATION:
            return None
        return standard_error(self.contributions) ** 2 * self.num_samples / self.variance


def degrees_of_freedom(contributions: FloatArray) -> float:
    """Degrees of freedom of a clustered variance, at most C - 1 and at least 1.

    C - 1 holds for normal contributions. When a few questions make up most of the variance, the
    variance itself is known badly: Satterthwaite's rule with the observed kurtosis k gives
    2 C / (k - 1).
    """
    num = len(contributions)
    total = float((contributions**2).sum())
    if total == 0:
        return max(1.0, num - 1.0)
    kurtosis = num * float((contributions**4).sum()) / total**2
    return float(np.clip(2 * num / max(kurtosis - 1, 1e-9), 1.0, max(1.0, num - 1.0)))


def standard_error(contributions: FloatArray) -> float:
    """Clustered, of the value that C questions contribute to, with the correction C / (C - 1)."""
    num = len(contributions)
    assert num > 1, "one question says nothing about others"
    return math.sqrt(num / (num - 1) * float((contributions**2).sum()))


def t_interval(value: float, contributions: FloatArray) -> Interval | None:
    """A figure with clustered standard error and t quantile, for values without bounds.

    Args:
        value: the figure.
        contributions: by how much each question moves it (C,).

    Returns:
        None with one question, which says nothing about others.
    """
    if len(contributions) < 2:
        return None
    half = t_quantile(degrees_of_freedom(contributions)) * standard_error(contributions)
    return Interval(value, value - half, value + half)


def count_interval(clusters: Clusters) -> Interval | None:
    """Mean of values from 0 up: the clustered t interval of its logarithm.

    Long answers are further from the mean than short ones, so an interval that reaches as far up
    as down misses high means too often; this one reaches further up, and never below 0. With few
    questions, among which the longest answers may be missing, it reaches further up still.

    Returns:
        None with one question, which says nothing about others. No width where all values are 0.
    """
    mean = clusters.mean
    if mean == 0:
        return t_interval(mean, clusters.contributions)
    found = t_interval(math.log(mean), clusters.contributions / mean)
    if found is None:
        return None
    up = upward_stretch(clusters.num_questions) * (found.high - found.mean)
    return Interval(mean, math.exp(found.low), mean * math.exp(up))


def upward_stretch(num_questions: int, most: float = FEW_QUESTIONS_STRETCH) -> float:
    """Factor by which an interval reaches further up than its quantile; 1 from 50 questions on.

    Args:
        num_questions: C.
        most: by how much more with hardly any question.
    """
    return 1 + most * fewness(num_questions)


def few_questions(num_questions: int) -> str:
    """A caution where intervals are of too few questions; empty where they are not."""
    if num_questions >= FEW_QUESTIONS:
        return ""
    return f"{num_questions} questions: ask {FEW_QUESTIONS} for a trustworthy interval"


def fewness(num_questions: int) -> float:
    """From 1, for hardly any question, down to 0 for 50 and more."""
    return max(0.0, 1 - num_questions / MANY_QUESTIONS)


def bootstrap_interval(clusters: Clusters, num_draws: int = 2000, seed: int = 0) -> Interval:
    """Percentile interval of a cluster bootstrap, which draws whole questions.

    For comparison: it is a little too narrow with few questions and has no width where all answers
    are alike (docs/statistics.md).
    """
    num = clusters.num_questions
    weights = np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), num_draws)
    draws = (weights @ clusters.totals) / (weights @ clusters.sizes)
    low, high = np.quantile(draws, (0.025, 0.975))
    return Interval(clusters.mean, float(low), float(high))


def correlation(first: FloatArray, second: FloatArray) -> float:
    """Of two arms' figures, from their contributions by the same questions (C,); 0 if unknown.

    Pearson's. What narrows an interval, a positive one, is first adjusted for its degrees of
    freedom as a regression's R² is: few questions may look more alike in both arms than they are.
    """
    scale = math.sqrt(float((first**2).sum() * (second**2).sum()))
    if scale == 0:
        return 0.0
    found = float(np.clip((first * second).sum() / scale, -1, 1))
    num = len(first)
    if found <= 0 or num < 3:
        return min(found, 0.0)
    return math.sqrt(max(0.0, 1 - (1 - found**2) * (num - 1) / (num - 2)))


def difference_interval(first: Interval, second: Interval, correlated: float) -> Interval:
    """Interval of `first - second` from their own intervals (variance estimates recovery).

    Newcombe (1998) and Zou and Donner (2008). A difference keeps a width where an arm has none of
    a behaviour, and the pairing narrows it by the correlation.
    """
    difference = first.mean - second.mean

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 + other**2 - 2 * correlated * one * other))

    low = difference - reach(first.mean - first.low, second.high - second.mean)
    high = difference + reach(first.high - first.mean, second.mean - second.low)
    return Interval(difference, low, high)


def permutation_p_value(
    arm: Sequence[Clusters],
    base: Sequence[Clusters],
    figure: Callable[..., FloatArray],
    num_draws: int = 9999,
    seed: int = 0,
) -> float:
    """Two-sided p-value of a difference between two arms on the same questions.

    If the arms don't differ, each question's answers could as well have been the other arm's: arms
    are exchanged question by question, in all ways where these are fewer than `num_draws`.

    Args:
        arm: one or several question sets, each with the questions of its fellow in `base`.
        base: the other arm's.
        figure: from the means of the sets, one argument a set, to the figure compared.
        num_draws: permutations at most; no p-value is below 2 / (num_draws + 1).
        seed: of the draws.
    """
    assert all(one.questions == other.questions for one, other in zip(arm, base, strict=True))
    num = sum(one.num_questions for one in arm)
    if num < 2:
        return 1.0  # exchanging one question's answers changes the sign alone
    exchanged = _exchanges(num, num_draws, seed)
    splits = np.cumsum([one.num_questions for one in arm])[:-1]
    parts = np.split(exchanged, splits, axis=1)
    means = [
        _exchanged_means(one, other, part)
        for one, other, part in zip(arm, base, parts, strict=True)
    ]
    drawn = figure(*(first for first, _ in means)) - figure(*(second for _, second in means))
    observed = float(figure(*(one.mean for one in arm)) - figure(*(one.mean for one in base)))
    # What is equal but for rounding counts as equal.
    slack = ROUNDING * max(1.0, abs(observed))
    tails = [np.count_nonzero(sign * (drawn - observed) >= -slack) for sign in (1, -1)]
    itself = 0 if len(drawn) == 2**num else 1  # drawn at random, the arms as they are are one more
    return min(1.0, 2 * (min(tails) + itself) / (len(drawn) + itself))


@lru_cache(maxsize=4)
def _exchanges(num_questions: int, num_draws: int, seed: int) -> NDArray[np.bool_]:
    """Which questions are exchanged in each draw (draws, C): all ways, or random ones.

    Every figure of a comparison with as many questions takes the same draws.
    """
    if 2**num_questions <= num_draws:
        ways = np.arange(2**num_questions)[:, None] >> np.arange(num_questions)
        return (ways & 1).astype(bool)
    pairs = np.tile(np.array([False, True]), (num_draws, num_questions, 1))
    drawn: NDArray[np.bool_] = np.random.default_rng(seed).permuted(pairs, axis=-1)[..., 0]
    return drawn


def _exchanged_means(
    arm: Clusters, base: Clusters, exchanged: NDArray[np.bool_]
) -> tuple[FloatArray, FloatArray]:
    """Means of both arms in each draw (draws,)."""
    moved = np.stack((base.totals - arm.totals, base.sizes - arm.sizes), axis=1)
    totals, sizes = (exchanged @ moved).T
    return (
        (arm.totals.sum() + totals) / (arm.sizes.sum() + sizes),
        (base.totals.sum() - totals) / (base.sizes.sum() - sizes),
    )
