"""Intervals for means of values from 0 to 100: rates, scores and Misalign@k.

Never of zero width, never outside 0 to 100. docs/statistics.md has the formulas and the coverage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from treft.statistics.clusters import Clusters, degrees_of_freedom, fewness
from treft.statistics.metrics import Interval, t_quantile, wilson
from treft.statistics.rate_posterior import posterior_interval

BoundedMethod = Literal[
    "Wilson",
    "averaged over models of how questions differ",
    "Wilson at the effective sample size",
]

FEW_QUESTIONS_WEIGHT = 0.35
MANY_QUESTIONS_WEIGHT = 0.08
"""Weight, in questions, of the assumption of the largest variance of scores: with hardly any
question, and from 50 questions on; it falls in a line between. Where few questions show any
variation, how alike answers are cannot be estimated, and the estimate is too optimistic more often
than not. By simulation: with less the coverage falls, with more intervals become needlessly wide.
"""


def bounded_interval(clusters: Clusters) -> Interval:
    """The 95 % interval by the method that fits the values."""
    return _METHODS[bounded_method(clusters)](clusters)


def bounded_method(clusters: Clusters) -> BoundedMethod:
    """Wilson's where each question has one flag; what `rate_interval` does where it has several."""
    if not clusters.are_flags:
        return "Wilson at the effective sample size"
    if clusters.sizes.max() == 1:
        return "Wilson"
    if clusters.num_questions > 1:
        return "averaged over models of how questions differ"
    return "Wilson at the effective sample size"


def _plain_interval(clusters: Clusters) -> Interval:
    return wilson(_share(clusters) * clusters.num_samples, clusters.num_samples)


def rate_interval(clusters: Clusters) -> Interval:
    """Mean of flags, several to a question: `posterior_interval`, and no shorter than Wilson's.

    Where questions differ in another way than any of the models has it, the clustered variance is
    right in the long run; so either end is at least as far away as that of Wilson's interval at the
    sample size that the design effect leaves (at least 1, normal quantile).
    """
    found = posterior_interval(np.round(clusters.totals / 100), clusters.sizes)
    effect = clusters.design_effect
    if effect is None:
        return found
    size = clusters.num_samples / max(1.0, effect)
    plain = wilson(_share(clusters) * size, size)
    return Interval(found.mean, min(found.low, plain.low), max(found.high, plain.high))


def score_interval(clusters: Clusters) -> Interval:
    """Mean of scores: Wilson's interval at the effective number of independent draws."""
    size = _effective_size(clusters)
    if clusters.num_questions < 2:
        return wilson(_share(clusters) * size, size)
    quantile = t_quantile(degrees_of_freedom(clusters.contributions))
    return wilson(_share(clusters) * size, size, quantile)


_METHODS: dict[BoundedMethod, Callable[[Clusters], Interval]] = {
    "Wilson": _plain_interval,
    "averaged over models of how questions differ": rate_interval,
    "Wilson at the effective sample size": score_interval,
}


def _share(clusters: Clusters) -> float:
    share = clusters.mean / 100
    assert -1e-9 <= share <= 1 + 1e-9, "values from 0 to 100"
    return min(1.0, max(0.0, share))


def _effective_size(clusters: Clusters) -> float:
    """How many independent draws of 0 or 100 would give a mean of scores of the same precision.

    The design effect is taken as at least 1. The variance is then drawn towards the largest, the
    more the fewer questions tell about it: all answers to a question alike, and single values
    half way to the variance of flags, the largest that values of this mean can have.
    """
    sizes, mean = clusters.sizes, clusters.mean
    largest = float((sizes**2).sum() / sizes.sum())
    effect = clusters.design_effect
    if effect is None:
        return clusters.num_samples / largest
    spread = clusters.squares - 2 * mean * clusters.totals + sizes * mean**2
    telling = float(spread.sum() ** 2 / (spread**2).sum())
    weight = _weight_of_largest(clusters.num_questions)
    of_flags = mean * (100 - mean)  # which Wilson's interval assumes; scores vary less
    observed = max(1.0, effect) * clusters.variance
    utmost = largest * (clusters.variance + of_flags) / 2
    variance = (telling * observed + weight * utmost) / (telling + weight)
    return clusters.num_samples * of_flags / variance


def _weight_of_largest(num_questions: int) -> float:
    extra = FEW_QUESTIONS_WEIGHT - MANY_QUESTIONS_WEIGHT
    return MANY_QUESTIONS_WEIGHT + extra * fewness(num_questions)
