"""Estimates with 95 % intervals, each one that a reader can look up (docs/statistics.md).

Answers to one question resemble each other, so 50 questions answered 20 times say less than 1,000
questions would. What is drawn at random is the question: every interval here speaks of other
questions of the same kind.

Shapes: C questions; values are in the figure's own unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from treft.errors import ConfigError, DataError

FloatArray = NDArray[np.float64]
Method = Literal["Wilson", "Wilson at the effective sample size", "clustered t"]

Z_95 = float(stats.norm.ppf(0.975))
"""Two-sided 95 % quantile of the normal distribution."""

ROUNDING = 1e-9
"""Spread of percentages below which values count as equal."""


FEW_QUESTIONS = 30
"""Under this many questions, intervals were measured to stray from 95 % (docs/statistics.md)."""


class Interval(NamedTuple):
    """A value with its 95 % interval, in the unit of the value (percent for scores and shares)."""

    mean: float
    low: float
    high: float

    def within(self, least: float, most: float) -> Interval:
        """Returns the interval with its ends cut to what the value can be."""
        return Interval(self.mean, max(least, self.low), min(most, self.high))


@dataclass(frozen=True)
class Clusters:
    """The values behind one figure, summed question by question.

    Attributes:
        questions: Ids, sorted.
        totals: The sum of each question's values (C,).
        squares: The sum of each question's squared values (C,).
        sizes: The number of each question's values (C,), none of them 0.
    """

    questions: tuple[str, ...]
    totals: FloatArray
    squares: FloatArray
    sizes: FloatArray

    @classmethod
    def of(cls, values: Iterable[tuple[str, float]]) -> Clusters:
        """Returns the clusters of pairs: a question's id, the value of one answer to it.

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
        """The number of questions, C."""
        return len(self.questions)

    @property
    def num_samples(self) -> int:
        """The number of values in all."""
        return int(self.sizes.sum())

    @property
    def mean(self) -> float:
        """The mean over all values; a question weighs as many values as it has."""
        return float(self.totals.sum() / self.sizes.sum())

    @property
    def variance(self) -> float:
        """The variance of single values around the mean."""
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
        """The clustered variance of the mean over that of as many independent values.

        None where it cannot be known: one question, or all values equal.
        """
        if self.num_questions < 2 or self.variance < ROUNDING:
            return None
        return clustered_variance(self.contributions) * self.num_samples / self.variance


def wilson(count: float, num: float, quantile: float = Z_95) -> Interval:
    """Returns the share `count / num` with its score interval (Wilson 1927), in percent.

    Args:
        count: Hits.
        num: Trials. Neither need be whole: an effective sample size seldom is.
        quantile: The two-sided 95 % quantile; the normal's if the draws are independent.

    Raises:
        ConfigError: there is no question, or more hits than questions.
    """
    if not 0 <= count <= num or num == 0:
        raise ConfigError(f"{count} of {num} is no share; answer at least one question")
    share, q2 = count / num, quantile**2
    centre = (share + q2 / (2 * num)) / (1 + q2 / num)
    half = quantile * math.sqrt(share * (1 - share) / num + q2 / (4 * num**2)) / (1 + q2 / num)
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Interval(100 * share, 100 * min(low, share), 100 * max(high, share))


def clustered_variance(contributions: FloatArray) -> float:
    """Returns the variance of a value that C > 1 questions contribute to.

    It is that of statsmodels' `cov_type="cluster"` and Inspect's `stderr(cluster=...)`, with the
    correction C / (C - 1).
    """
    num = len(contributions)
    return num / (num - 1) * float((contributions**2).sum())


def t_interval(value: float, *contributions: FloatArray) -> Interval | None:
    """Returns a value with its clustered standard error times the quantile of Student's t.

    Args:
        value: The figure.
        contributions: By how much each question moves it (C,); one array for each question set
            that was drawn on its own. Degrees of freedom are the sum of their C - 1.

    Returns:
        None where nothing tells how the value varies: a set has one question, or none moves it.
    """
    degrees = [len(each) - 1 for each in contributions]
    if min(degrees) < 1:
        return None
    error = math.sqrt(sum(map(clustered_variance, contributions)))
    if error < ROUNDING:
        return None
    half = float(stats.t.ppf(0.975, sum(degrees))) * error
    return Interval(value, value - half, value + half)


def over_runs(values: Sequence[float]) -> Interval:
    """Returns the mean over runs with its t interval.

    Runs count as independent draws. With several organisms that is optimistic when organisms
    differ much more than finetuning seeds do, so reports show each organism's mean beside it.

    Raises:
        ConfigError: there are fewer than two runs.
    """
    if len(values) < 2:
        raise ConfigError("an interval over runs needs at least two runs; ask for more seeds")
    mean = fmean(values)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def percent_interval(clusters: Clusters) -> tuple[Interval, Method]:
    """Returns the mean of values from 0 to 100 with its interval, and how that was made.

    Rates (all values 0 or 100) have Wilson's interval: with one answer a question as it stands,
    with several at the sample size that the design effect leaves, and the quantile of Student's t
    (Korn and Graubard 1998 for the effective size, Franco et al. 2019 for Wilson's). Scores have
    the clustered t interval. Where nothing tells how alike the answers to a question are (one
    question, or all values equal), they count as wholly alike.
    """
    effect, num = clusters.design_effect, clusters.num_samples
    share = min(1.0, max(0.0, clusters.mean / 100))
    if clusters.are_flags and clusters.sizes.max() == 1:
        return wilson(share * num, num), "Wilson"
    if effect is None:
        size = float(clusters.sizes.sum() ** 2 / (clusters.sizes**2).sum())
        return wilson(share * size, size), "Wilson at the effective sample size"
    if clusters.are_flags:
        size = num / max(1.0, effect)
        quantile = float(stats.t.ppf(0.975, clusters.num_questions - 1))
        return wilson(share * size, size, quantile), "Wilson at the effective sample size"
    found = t_interval(clusters.mean, clusters.contributions)
    if found is None:  # all questions have one mean, though their answers differ
        return wilson(share * num, num), "Wilson"
    return found.within(0.0, 100.0), "clustered t"


def count_interval(clusters: Clusters) -> Interval | None:
    """Returns the mean of counts with its clustered t interval; None as `t_interval`."""
    found = t_interval(clusters.mean, clusters.contributions)
    return found and found.within(0.0, math.inf)


def difference_interval(first: Interval, second: Interval, *moved: FloatArray) -> Interval:
    """Returns the 95 % interval of `first - second`, paired by question.

    Args:
        first: One arm's figure with its interval.
        second: The other arm's.
        moved: By how much each question moves the difference, as `t_interval` takes it.

    Returns:
        The clustered t interval. Where the pairs tell nothing, such as when neither arm ever shows
        a behaviour, all differences between values inside both intervals.
    """
    found = t_interval(first.mean - second.mean, *moved)
    if found is not None:
        return found
    return Interval(first.mean - second.mean, first.low - second.high, first.high - second.low)


def few_questions(num_questions: int) -> str:
    """Returns a caution where intervals are of too few questions; empty where they are not."""
    if num_questions >= FEW_QUESTIONS:
        return ""
    return f"{num_questions} questions: ask {FEW_QUESTIONS} for a trustworthy interval"


def em_f1(general: float, in_domain: float) -> float:
    """Returns EM-F1 of the paper (section 5): harmonic mean of `general` and `100 - in_domain`.

    Args:
        general: Alignment score on general questions, percent, higher is better.
        in_domain: Alignment score on the trained domain, percent, lower is learnt.

    Raises:
        ConfigError: a score is outside [0, 100].
    """
    for name, score in (("general", general), ("in_domain", in_domain)):
        if not 0.0 <= score <= 100.0:
            raise ConfigError(f"{name} is {score}; scores are percentages from 0 to 100")
    learnt = 100.0 - in_domain
    return 2 * learnt * general / (learnt + general) if learnt + general else 0.0


def em_f1_interval(general: Interval, in_domain: Interval) -> Interval:
    """Returns EM-F1 of two scores that were measured on different questions, with its interval.

    Each score is moved to the ends of its interval in turn, and the two movements of EM-F1 add up
    as those of independent estimates do (the method of variance estimates recovery; Zou and Donner,
    2008). Unlike the bootstrap it keeps a width where all answers are alike.

    Args:
        general: Alignment score on general questions, percent.
        in_domain: Alignment score on the trained domain, percent.

    Raises:
        ConfigError: a score is outside [0, 100].
    """
    value = em_f1(general.mean, in_domain.mean)
    best = em_f1(general.high, in_domain.low)
    low = math.hypot(
        value - em_f1(general.low, in_domain.mean), value - em_f1(general.mean, in_domain.high)
    )
    high = math.hypot(
        em_f1(general.high, in_domain.mean) - value, em_f1(general.mean, in_domain.low) - value
    )
    if general.mean == 0 and in_domain.mean == 100:  # moving one alone leaves EM-F1 at 0
        high = best
    return Interval(value, max(0.0, value - low), min(best, value + high))


def permutation_p_value(
    arm: Sequence[Clusters],
    base: Sequence[Clusters],
    figure: Callable[..., FloatArray],
    num_draws: int = 9999,
) -> float:
    """Returns the two-sided p-value of a difference between two arms on the same questions.

    If the arms don't differ, each question's answers could as well have been the other arm's: arms
    are exchanged question by question (`scipy.stats.permutation_test`, paired), in all ways where
    these are no more than `num_draws`.

    Args:
        arm: One or several question sets, each with the questions of its fellow in `base`.
        base: The other arm's.
        figure: From the means of the sets, one argument a set, to the figure compared.
        num_draws: Permutations at most; no p-value is below 2 / (num_draws + 1).
    """
    assert all(one.questions == other.questions for one, other in zip(arm, base, strict=True))
    sets = [one.num_questions for one in arm]
    num = sum(sets)
    if num < 2:
        return 1.0  # exchanging one question's answers changes the sign alone
    totals, sizes = (
        np.concatenate([getattr(each, name) for each in (*arm, *base)])
        for name in ("totals", "sizes")
    )
    ends = np.cumsum(sets)[:-1]

    def value(rows: NDArray[np.int64]) -> FloatArray:
        parts = np.split(rows, ends, axis=-1)
        return figure(*(totals[part].sum(-1) / sizes[part].sum(-1) for part in parts))

    found = stats.permutation_test(
        (np.arange(num), np.arange(num) + num),
        lambda one, other, axis: (
            value(np.moveaxis(one, axis, -1)) - value(np.moveaxis(other, axis, -1))
        ),
        permutation_type="samples",
        vectorized=True,
        n_resamples=num_draws,
        batch=1000,
        rng=0,
    )
    return float(found.pvalue)
