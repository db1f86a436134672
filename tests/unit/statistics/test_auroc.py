"""The area under the ROC curve and its interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from treft.statistics.agreement import auroc


def delong(positive: np.ndarray, negative: np.ndarray) -> tuple[float, float]:
    """Area and standard error (DeLong, DeLong and Clarke-Pearson 1988), from placements."""
    wins = np.array([[(p > n) + (p == n) / 2 for n in negative] for p in positive])
    variance = wins.mean(1).var(ddof=1) / len(positive) + wins.mean(0).var(ddof=1) / len(negative)
    return float(wins.mean()), math.sqrt(variance)


def test_the_area_is_that_of_mann_whitney() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(3, 10, 40), rng.integers(0, 7, 30)
    u = stats.mannwhitneyu(positive, negative).statistic
    assert auroc(list(positive), list(negative)).mean == pytest.approx(u / (40 * 30))


def test_with_many_items_the_interval_is_delongs() -> None:
    rng = np.random.default_rng(1)
    positive, negative = rng.normal(1, 1, 800), rng.normal(0, 1, 600)
    area, error = delong(positive, negative)
    found = auroc(list(positive), list(negative))
    assert found.low == pytest.approx(area - 1.96 * error, abs=0.003)
    assert found.high == pytest.approx(area + 1.96 * error, abs=0.003)


def test_the_ends_solve_newcombes_equation() -> None:
    """The variance written out as Hanley and McNeil have it."""
    found = auroc([3, 4, 5, 2], [1, 2, 3])
    for end in (found.low, found.high):
        first, second = end / (2 - end), 2 * end**2 / (1 + end)
        spread = 2.5 * (first + second - 2 * end**2) + end * (1 - end)
        z = abs(found.mean - end) / math.sqrt(spread / 12)
        assert z == pytest.approx(stats.norm.ppf(0.975), rel=1e-6)


@pytest.mark.parametrize(("positive", "area"), [([5, 6, 7], 1.0), ([0, 0, 0], 0.0)])
def test_perfect_separation_has_a_width(positive: list[float], area: float) -> None:
    found = auroc(positive, [1, 2, 3])
    assert found.mean == area
    assert found.high - found.low > 0.3
    assert area in (found.low, found.high)


@pytest.mark.slow
@pytest.mark.parametrize(("distance", "seed"), [(1.2, 0), (2.4, 1)])
def test_intervals_cover_as_often_as_they_say(distance: float, seed: int) -> None:
    """1,000 calibration sets of 14 and 14 normal scores, areas 0.80 and 0.955."""
    rng = np.random.default_rng(seed)
    truth = stats.norm.cdf(distance / math.sqrt(2))
    hits = 0
    for _ in range(1000):
        found = auroc(list(rng.normal(distance, 1, 14)), list(rng.normal(0, 1, 14)))
        hits += found.low <= truth <= found.high
    assert 930 <= hits <= 970, hits
