"""Scores and intervals, against printed tables, worked values and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from statsmodels.stats.proportion import proportion_confint

from treft.errors import ConfigError
from treft.statistics.metrics import (
    Interval,
    em_f1,
    em_f1_interval,
    over_runs,
    t_quantile,
    wilson,
)


@pytest.mark.parametrize(
    ("general", "in_domain", "expected"),
    [
        (47.5, 13.3, 61.4),  # the paper's Table 3: SFT,
        (64.1, 15.3, 73.0),  # interleaving,
        (91.0, 79.0, 34.1),  # TReFT on the query
        (85.6, 27.7, 78.4),  # and on the prefix
    ],
)
def test_em_f1_gives_the_papers_rows(general: float, in_domain: float, expected: float) -> None:
    assert em_f1(general, in_domain) == pytest.approx(expected, abs=0.06)


def test_em_f1_at_the_edges() -> None:
    assert em_f1(0, 0) == 0
    assert em_f1(100, 100) == 0
    assert em_f1(0, 100) == 0
    assert em_f1(100, 0) == 100


@pytest.mark.parametrize("scores", [(-0.1, 50), (50, 100.1), (math.nan, 50), (50, math.nan)])
def test_em_f1_refuses_what_is_no_percentage(scores: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="percentages from 0 to 100"):
        em_f1(*scores)


@pytest.mark.parametrize(
    ("count", "num", "low", "high"),
    # Roots of (p - share)^2 = z^2 p (1 - p) / num, to the digits given.
    [(8, 10, 49.02, 94.33), (0, 10, 0.0, 27.75), (10, 10, 72.25, 100.0), (50, 100, 40.38, 59.62)],
)
def test_wilson_gives_known_intervals(count: int, num: int, low: float, high: float) -> None:
    interval = wilson(count, num)
    assert interval.mean == pytest.approx(100 * count / num)
    assert interval.low == pytest.approx(low, abs=0.01)
    assert interval.high == pytest.approx(high, abs=0.01)


def test_wilson_ends_solve_its_equation() -> None:
    for count, num in ((3, 17), (60, 200)):
        for end in wilson(count, num)[1:]:
            share, p = count / num, end / 100
            assert (p - share) ** 2 == pytest.approx(1.959963984540054**2 * p * (1 - p) / num)


@pytest.mark.parametrize("count", [0, 0.5, 1, 13.7, 25])
def test_wilson_is_statsmodels_wilson(count: float) -> None:
    low, high = proportion_confint(count, 25, method="wilson")
    assert wilson(count, 25) == pytest.approx((4 * count, 100 * low, 100 * high))


@pytest.mark.parametrize("shares", [(1, 0), (5, 4), (-1, 4)])
def test_wilson_refuses_what_is_no_share(shares: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="no share"):
        wilson(*shares)


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (14, 2.145), (60, 2.000)],
)
def test_t_quantiles_are_those_of_printed_tables(degrees: int, quantile: float) -> None:
    assert t_quantile(degrees) == pytest.approx(quantile, abs=6e-4)


@pytest.mark.parametrize("degrees", [1, 2, 7, 8])
def test_t_quantile_inverts_the_integrated_density(degrees: int) -> None:
    quantile = t_quantile(degrees, 0.9)
    grid = np.linspace(0, quantile, 20_001)
    constant = math.gamma((degrees + 1) / 2) / (
        math.sqrt(degrees * math.pi) * math.gamma(degrees / 2)
    )
    density = constant * (1 + grid**2 / degrees) ** (-(degrees + 1) / 2)
    assert 0.5 + np.trapezoid(density, grid) == pytest.approx(0.9, abs=1e-6)


def test_over_runs_is_mean_and_t_interval() -> None:
    # s = 2, n = 3: half width 4.3027 * 2 / sqrt(3).
    interval = over_runs([8.0, 10.0, 12.0])
    assert interval.mean == 10
    assert interval.high - 10 == pytest.approx(4.9683, abs=1e-3)
    assert 10 - interval.low == pytest.approx(4.9683, abs=1e-3)
    with pytest.raises(ConfigError, match="at least two runs"):
        over_runs([50.0])


def test_over_runs_is_scipys_interval() -> None:
    values = [61.5, 70.2, 58.9, 66.0, 64.4]
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert over_runs(values)[1:] == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(
    ("degrees", "probability"), [(0.9, 0.9), (math.nan, 0.9), (3, 1), (3, 0.4)]
)
def test_t_quantile_refuses_what_has_none(degrees: float, probability: float) -> None:
    with pytest.raises(ConfigError, match="no t quantile"):
        t_quantile(degrees, probability)


def test_em_f1_of_one_uncertain_score_has_the_images_of_its_ends() -> None:
    exact = Interval(20.0, 20.0, 20.0)
    found = em_f1_interval(Interval(70.0, 60.0, 85.0), exact)
    assert found == pytest.approx((em_f1(70, 20), em_f1(60, 20), em_f1(85, 20)))
    found = em_f1_interval(Interval(70.0, 70.0, 70.0), Interval(20.0, 10.0, 40.0))
    assert found == pytest.approx((em_f1(70, 20), em_f1(70, 40), em_f1(70, 10)))


def test_em_f1_interval_adds_independent_errors_as_the_delta_method_does() -> None:
    # Small errors: the standard error of 2gl/(g+l) is sqrt((2l^2 a)^2 + (2g^2 b)^2) / (g+l)^2.
    general, learnt, a, b = 80.0, 60.0, 0.02, 0.03
    half = math.hypot(2 * learnt**2 * a, 2 * general**2 * b) / (general + learnt) ** 2
    found = em_f1_interval(
        Interval(general, general - a, general + a),
        Interval(100 - learnt, 100 - learnt - b, 100 - learnt + b),
    )
    assert found.high - found.mean == pytest.approx(half, rel=1e-3)
    assert found.mean - found.low == pytest.approx(half, rel=1e-3)


def test_em_f1_interval_keeps_a_width_at_the_edges() -> None:
    none, full = Interval(0.0, 0.0, 7.0), Interval(100.0, 93.0, 100.0)
    low = 100 - math.sqrt(2) * (100 - em_f1(93, 0))
    assert em_f1_interval(full, none) == pytest.approx((100, low, 100))
    assert em_f1_interval(none, full) == pytest.approx((0, 0, em_f1(7, 93)))
    assert em_f1_interval(none, none) == pytest.approx((0, 0, em_f1(7, 0)))
