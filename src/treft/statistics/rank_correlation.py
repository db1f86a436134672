"""Spearman's rank correlation of two judges' scores, with a bootstrap interval over questions.

The correlation is near its largest value where half of the answers are misaligned, and falls to
either side. There its first-order variation vanishes, so that a jackknife, which sees nothing else,
is too narrow (docs/statistics.md); the bootstrap sees the fall.

Shapes: N answers (or pairs of scores that occur), C questions, D draws.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from treft.statistics.clusters import FloatArray
from treft.statistics.metrics import t_quantile

NUM_DRAWS = 1000
MOST_UNDEFINED = 0.01
"""Share of draws without a correlation above which there is no interval."""

BLOCK = 2_000_000
"""Numbers held at once: draws times pairs of scores."""


def spearman(scores: FloatArray) -> float | None:
    """Spearman's rank correlation of two judges' scores (N, 2); None if a judge is constant."""
    found = float(_weighted(scores, np.ones((1, len(scores))))[0])
    return None if math.isnan(found) else found


def spearman_interval(
    scores: FloatArray, questions: NDArray[np.str_], num_draws: int = NUM_DRAWS, seed: int = 0
) -> tuple[float, float] | None:
    """95 % interval of Spearman's correlation: whole questions drawn again, expanded percentiles.

    Percentiles of a bootstrap are too narrow by what a normal is narrower than t and by
    √((C - 1) / C); they are taken that much further out (Hesterberg 2015, section 5.2).

    Args:
        scores: of two judges (N, 2).
        questions: of the answers (N,).
        num_draws: of C questions each, with replacement.
        seed: of the draws.

    Returns:
        None where there is one question, a correlation of 1 or -1 or none at all, or where one draw
        in a hundred has none.
    """
    names, rows = np.unique(questions, return_inverse=True)
    num, value = len(names), spearman(scores)
    if value is None or num < 2 or abs(value) >= 1:
        return None
    drawn = np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), num_draws)
    pairs, column = np.unique(scores, axis=0, return_inverse=True)
    counts = np.zeros((num, len(pairs)))
    np.add.at(counts, (rows, column), 1)
    blocks = np.array_split(drawn, math.ceil(num_draws * len(pairs) / BLOCK))
    values = np.concatenate([_weighted(pairs, block @ counts) for block in blocks])
    known = values[np.isfinite(values)]
    if len(known) < (1 - MOST_UNDEFINED) * num_draws or np.ptp(known) == 0:
        return None
    tail = float(stats.norm.cdf(-math.sqrt(num / (num - 1)) * t_quantile(num - 1)))
    low, high = np.quantile(known, (tail, 1 - tail))
    return float(low), float(high)


def _weighted(scores: FloatArray, weights: NDArray) -> FloatArray:
    """Correlations (D,) of answers that count as often as their weights (D, N) say, or NaN."""
    total = weights.sum(1, keepdims=True)
    first, second = (_mid_ranks(column, weights) - total / 2 for column in scores.T)
    spreads = ((weights * ranks**2).sum(1) for ranks in (first, second))
    scale = np.sqrt(np.prod(list(spreads), axis=0))
    found = np.full(len(weights), math.nan)
    np.divide((weights * first * second).sum(1), scale, out=found, where=scale > 0)
    return found


def _mid_ranks(values: FloatArray, weights: NDArray) -> FloatArray:
    """Ranks (D, N) from 0 on; answers of the same value share the middle of their places."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    sizes = np.add.reduceat(weights[:, order], starts, axis=1)
    middles: FloatArray = np.cumsum(sizes, axis=1) - sizes / 2
    return middles[:, group]
