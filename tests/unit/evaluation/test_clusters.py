"""Clustered intervals against statsmodels, scipy and Inspect."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import statsmodels.api as sm
from inspect_ai.scorer import SampleScore, Score, stderr
from made_answers import clusters_of
from scipy import stats

from treft.errors import DataError
from treft.statistics.clusters import (
    Clusters,
    bootstrap_interval,
    correlation,
    count_interval,
    degrees_of_freedom,
    difference_interval,
    permutation_p_value,
    standard_error,
    t_interval,
)
from treft.statistics.metrics import Interval, t_quantile, wilson


def unbalanced(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Questions and values of 12 questions with one to nine answers each."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(12), rng.integers(1, 10, 12))
    return groups, 50 + 10 * rng.standard_normal(12)[groups] + 5 * rng.standard_normal(len(groups))


def test_standard_error_is_statsmodels_clustered_one() -> None:
    groups, values = unbalanced()
    found = clusters_of(groups, values)
    fit = sm.OLS(values, np.ones(len(values))).fit(
        cov_type="cluster", cov_kwds={"groups": groups}, use_t=True
    )
    assert found.mean == pytest.approx(fit.params[0])
    assert standard_error(found.contributions) == pytest.approx(fit.bse[0])
    # statsmodels uses C - 1 degrees of freedom, here as there when no question stands out.
    half = t_quantile(11) * fit.bse[0]
    assert fit.conf_int()[0] == pytest.approx((found.mean - half, found.mean + half))
    interval = t_interval(found.mean, found.contributions)
    assert interval is not None
    assert interval.high - interval.mean >= half


def test_standard_error_is_inspects() -> None:
    groups, values = unbalanced(1)
    scores = [
        SampleScore(score=Score(value=float(value)), sample_metadata={"question_id": int(group)})
        for group, value in zip(groups, values, strict=True)
    ]
    expected = stderr(cluster="question_id")(scores)
    assert standard_error(clusters_of(groups, values).contributions) == pytest.approx(expected)


def test_difference_of_arms_has_statsmodels_standard_error() -> None:
    groups, values = unbalanced()
    others = values + np.random.default_rng(2).standard_normal(len(values))
    arm, base = clusters_of(groups, others + 3), clusters_of(groups, values)
    design = np.repeat([[1, 1], [1, 0]], len(values), axis=0)
    fit = sm.OLS(np.concatenate((others + 3, values)), design).fit(
        cov_type="cluster", cov_kwds={"groups": np.tile(groups, 2)}
    )
    assert arm.mean - base.mean == pytest.approx(fit.params[1])
    # statsmodels corrects for two parameters, which one difference of means is not.
    rows = 2 * len(values)
    expected = fit.bse[1] / np.sqrt((rows - 1) / (rows - 2))
    assert standard_error(arm.contributions - base.contributions) == pytest.approx(expected)


def test_degrees_of_freedom_fall_with_the_kurtosis() -> None:
    contributions = np.random.default_rng(0).standard_normal(40)
    kurtosis = stats.kurtosis(np.r_[contributions, -contributions], fisher=False)
    expected = min(39, 80 / (kurtosis - 1))
    assert degrees_of_freedom(contributions) == pytest.approx(expected)
    assert degrees_of_freedom(np.array([1.0, -1.0] * 20)) == 39
    assert degrees_of_freedom(np.r_[100.0, np.full(39, -100 / 39)]) < 3
    assert degrees_of_freedom(np.zeros(40)) == 39


def test_counts_have_the_t_interval_of_their_logarithm() -> None:
    """To first order in the logarithm; near the mean both intervals are the same."""
    groups, values = np.repeat(np.arange(60), 3), np.random.default_rng(0).gamma(2, 30, 180)
    near, found = clusters_of(groups, 1000 + values), clusters_of(groups, values)
    expected = t_interval(near.mean, near.contributions)
    assert expected is not None
    assert count_interval(near) == pytest.approx(expected, rel=1e-3)
    interval = count_interval(found)
    assert interval is not None
    assert interval.high / found.mean == pytest.approx(found.mean / interval.low)
    half = t_quantile(degrees_of_freedom(found.contributions)) * standard_error(found.contributions)
    assert np.log(interval.high / found.mean) == pytest.approx(half / found.mean)


def test_counts_of_few_questions_reach_further_up() -> None:
    """By 0.4 as much again with hardly any question, falling in a line to nothing at 50."""
    for num, factor in ((5, 1.36), (25, 1.2), (50, 1.0), (80, 1.0)):
        found = clusters_of(np.arange(num), np.arange(num) + 1.0)
        half = t_quantile(degrees_of_freedom(found.contributions))
        half *= standard_error(found.contributions) / found.mean
        interval = count_interval(found)
        assert interval is not None
        assert np.log(found.mean / interval.low) == pytest.approx(half)
        assert np.log(interval.high / found.mean) == pytest.approx(factor * half)
    assert count_interval(clusters_of(np.arange(5), np.zeros(5))) == (0, 0, 0)
    assert count_interval(clusters_of(np.zeros(5, int), np.arange(5.0))) is None


def test_no_value_is_refused() -> None:
    with pytest.raises(DataError, match="no value"):
        Clusters.of([])


def test_cluster_bootstrap_is_scipys_over_questions() -> None:
    groups, values = unbalanced()
    found = clusters_of(groups, values)

    def mean(rows: np.ndarray, axis: int) -> np.ndarray:
        return found.totals[rows].sum(axis) / found.sizes[rows].sum(axis)

    expected = stats.bootstrap(
        (np.arange(12),), mean, method="percentile", n_resamples=20_000, rng=1
    ).confidence_interval
    interval = bootstrap_interval(found, 20_000)
    assert interval[1:] == pytest.approx((expected.low, expected.high), abs=0.3)
    assert bootstrap_interval(found) == bootstrap_interval(found)


def test_difference_interval_adds_variances_and_takes_off_the_covariance() -> None:
    first, second = Interval(50, 44, 56), Interval(30, 22, 38)
    expected = np.sqrt(6**2 + 8**2 - 2 * 0.5 * 6 * 8)
    assert difference_interval(first, second, 0.5) == pytest.approx(
        (20, 20 - expected, 20 + expected)
    )
    # Newcombe (1998), method 10, of 56/70 against 48/80: 0.0524 to 0.3339.
    found = difference_interval(wilson(56, 70), wilson(48, 80), 0.0)
    assert found[1:] == pytest.approx((5.24, 33.39), abs=0.01)


def test_correlation_is_pearsons_adjusted_as_r_squared_is() -> None:
    groups, values = unbalanced()
    arm, base = clusters_of(groups, values), clusters_of(groups, values + values[::-1])
    first, second = arm.contributions, base.contributions
    assert stats.pearsonr(first, second).statistic > 0.3
    expected = sm.OLS(second, np.column_stack([np.ones(12), first])).fit().rsquared_adj
    assert correlation(first, second) == pytest.approx(np.sqrt(expected))
    against = stats.pearsonr(first, -second).statistic
    assert correlation(first, -second) == pytest.approx(against), "this widens an interval"
    assert correlation(first, np.zeros(12)) == 0
    assert correlation(first, np.random.default_rng(0).permutation(first)) <= 0.3
    assert correlation(np.array([1.0, -1.0]), np.array([2.0, -2.0])) == 0, "two always agree"
    assert correlation(first, first) == pytest.approx(1)


def test_p_value_is_that_of_all_exchanges() -> None:
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(7), [1, 2, 3, 4, 5, 6, 7])
    arm, base = (clusters_of(groups, rng.integers(0, 2, 28) * 100.0) for _ in range(2))
    differences = []
    for exchanged in itertools.product([False, True], repeat=7):
        swap = np.array(exchanged)
        one = np.where(swap, base.totals, arm.totals).sum()
        one /= np.where(swap, base.sizes, arm.sizes).sum()
        other = np.where(swap, arm.totals, base.totals).sum()
        other /= np.where(swap, arm.sizes, base.sizes).sum()
        differences.append(one - other)
    observed = arm.mean - base.mean
    assert observed != 0
    tails = [np.mean(np.array(differences) * sign >= observed * sign - 1e-9) for sign in (1, -1)]
    found = permutation_p_value([arm], [base], lambda mean: mean)
    assert found == pytest.approx(min(1, 2 * min(tails)))


@pytest.mark.parametrize("num", [12, 40])
def test_p_value_is_that_of_scipy_at_the_same_seed(num: int) -> None:
    """12 questions can be exchanged in all ways, 40 only at random."""
    rng = np.random.default_rng(num)
    groups = np.repeat(np.arange(num), 3)
    arm, base = (clusters_of(groups, rng.integers(0, 2, 3 * num) * 100.0) for _ in range(2))

    totals = np.concatenate([arm.totals, base.totals])
    sizes = np.concatenate([arm.sizes, base.sizes])

    def mean(rows: np.ndarray, axis: int) -> np.ndarray:
        return totals[rows].sum(axis) / sizes[rows].sum(axis)

    rows = np.arange(num)
    wanted = stats.permutation_test(
        (rows, rows + num),
        lambda one, other, axis: mean(one, axis) - mean(other, axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        rng=0,
    ).pvalue
    assert 0 < wanted < 1
    assert permutation_p_value([arm], [base], lambda mean: mean) == pytest.approx(wanted)


def test_equal_arms_have_a_p_value_of_one() -> None:
    arm = clusters_of(np.repeat(np.arange(30), 4), np.zeros(120))
    assert permutation_p_value([arm], [arm], lambda mean: mean) == 1


def test_one_question_has_a_p_value_of_one() -> None:
    one, other = (clusters_of(np.zeros(4, int), np.full(4, value)) for value in (0.0, 100.0))
    assert permutation_p_value([one], [other], lambda mean: mean) == 1
