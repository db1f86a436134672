"""Clustered intervals against statsmodels, scipy and Inspect, and their coverage by simulation."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from inspect_ai.scorer import SampleScore, Score, stderr
from scipy import stats
from simulation import coverage
from statsmodels.stats.proportion import proportion_confint

from treft.errors import DataError
from treft.evaluation.clusters import (
    Clusters,
    bootstrap_interval,
    bounded_interval,
    correlation,
    count_interval,
    degrees_of_freedom,
    difference_interval,
    permutation_p_value,
    standard_error,
    t_interval,
)
from treft.metrics import Interval, t_quantile, wilson


def unbalanced(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Questions and values of 12 questions with one to nine answers each."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(12), rng.integers(1, 10, 12))
    return groups, 50 + 10 * rng.standard_normal(12)[groups] + 5 * rng.standard_normal(len(groups))


def of(groups: np.ndarray, values: np.ndarray) -> Clusters:
    return Clusters.of((f"q{group:02}", value) for group, value in zip(groups, values, strict=True))


def test_standard_error_is_statsmodels_clustered_one() -> None:
    groups, values = unbalanced()
    found = of(groups, values)
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
    assert standard_error(of(groups, values).contributions) == pytest.approx(expected)


def test_difference_of_arms_has_statsmodels_standard_error() -> None:
    groups, values = unbalanced()
    others = values + np.random.default_rng(2).standard_normal(len(values))
    arm, base = of(groups, others + 3), of(groups, values)
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


def test_one_flag_a_question_has_wilsons_interval() -> None:
    flags = np.array([100.0] * 7 + [0.0] * 33)
    found = bounded_interval(of(np.arange(40), flags))
    low, high = proportion_confint(7, 40, method="wilson")
    assert found == pytest.approx((17.5, 100 * low, 100 * high))


@pytest.mark.parametrize("value", [0.0, 100.0])
def test_a_behaviour_never_seen_counts_each_question_once(value: float) -> None:
    found = bounded_interval(of(np.repeat(np.arange(30), 20), np.full(600, value)))
    low, high = proportion_confint(round(0.3 * value), 30, method="wilson")
    # t with 29 degrees of freedom for the normal: a little wider.
    assert found.mean == value
    assert found.low == pytest.approx(100 * low, abs=1)
    assert found.high == pytest.approx(100 * high, abs=1)
    assert found.high - found.low > 10


def test_equal_answers_within_questions_count_each_question_once() -> None:
    hit = np.array([100.0] * 12 + [0.0] * 18)
    groups = np.repeat(np.arange(30), 20)
    found = bounded_interval(of(groups, hit[groups]))
    quantile = t_quantile(29)  # contributions of two sizes are no outliers
    expected = wilson(0.4 * 29, 29, quantile)  # C - 1, from the correction C / (C - 1)
    assert found == pytest.approx(expected, abs=0.05)


def test_independent_answers_have_nearly_the_interval_of_as_many_questions() -> None:
    flags = np.tile([100.0] * 8 + [0.0] * 12, 50)  # eight hits in every question
    found = bounded_interval(of(np.repeat(np.arange(50), 20), flags))
    low, high = proportion_confint(400, 1000, method="wilson")
    assert found.high - found.low == pytest.approx(100 * (high - low), rel=0.1)
    assert found.high - found.low > 100 * (high - low)


def test_scores_have_nearly_the_t_interval_where_it_fits() -> None:
    values = np.random.default_rng(0).normal(55, 12, 200).clip(0, 100)
    found = bounded_interval(of(np.arange(200), values))
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found == pytest.approx((values.mean(), expected.low, expected.high), abs=0.1)


def test_intervals_stay_within_bounds_and_keep_a_width() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(9), 5)
    for values in (100 * rng.random(45) ** 20, 100.0 - rng.random(45), np.full(45, 90.0)):
        found = bounded_interval(of(groups, values))
        assert 0 <= found.low < found.mean < found.high <= 100
    one = bounded_interval(of(np.zeros(50, int), np.full(50, 100.0)))
    assert one.low < 30, "one question says little about others"
    assert t_interval(3.0, np.zeros(1)) is None


def test_counts_have_the_t_interval_of_their_logarithm() -> None:
    """To first order in the logarithm; near the mean both intervals are the same."""
    groups, values = np.repeat(np.arange(60), 3), np.random.default_rng(0).gamma(2, 30, 180)
    near, found = of(groups, 1000 + values), of(groups, values)
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
        found = of(np.arange(num), np.arange(num) + 1.0)
        half = t_quantile(degrees_of_freedom(found.contributions))
        half *= standard_error(found.contributions) / found.mean
        interval = count_interval(found)
        assert interval is not None
        assert np.log(found.mean / interval.low) == pytest.approx(half)
        assert np.log(interval.high / found.mean) == pytest.approx(factor * half)
    assert count_interval(of(np.arange(5), np.zeros(5))) == (0, 0, 0)
    assert count_interval(of(np.zeros(5, int), np.arange(5.0))) is None


def test_no_value_is_refused() -> None:
    with pytest.raises(DataError, match="no value"):
        Clusters.of([])


def test_cluster_bootstrap_is_scipys_over_questions() -> None:
    groups, values = unbalanced()
    found = of(groups, values)

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


def test_correlation_is_pearsons() -> None:
    groups, values = unbalanced()
    arm, base = of(groups, values), of(groups, values[::-1])
    first, second = arm.contributions, base.contributions
    assert correlation(first, second) == pytest.approx(stats.pearsonr(first, second).statistic)
    assert correlation(first, np.zeros(12)) == 0


def test_p_value_is_that_of_all_exchanges() -> None:
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(7), [1, 2, 3, 4, 5, 6, 7])
    arm, base = (of(groups, rng.integers(0, 2, 28) * 100.0) for _ in range(2))
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
    arm, base = (of(groups, rng.integers(0, 2, 3 * num) * 100.0) for _ in range(2))

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
    arm = of(np.repeat(np.arange(30), 4), np.zeros(120))
    assert permutation_p_value([arm], [arm], lambda mean: mean) == 1


def test_one_question_has_a_p_value_of_one() -> None:
    one, other = (of(np.zeros(4, int), np.full(4, value)) for value in (0.0, 100.0))
    assert permutation_p_value([one], [other], lambda mean: mean) == 1


def of_designs(by_method: dict[str, list[Any]]) -> pytest.MarkDecorator:
    """A test for each method and design of studies."""
    cases = [
        pytest.param(method, design, id=f"{design.figure}, {design.size}")
        for method, designs in by_method.items()
        for design in designs
    ]
    return pytest.mark.parametrize(("method", "design"), cases)


FAST = {
    "wilson": [
        coverage.rate_design(50, 20, 0.7, 0.03),
        coverage.rate_design(50, 20, 1.5, 0.03),
        coverage.rate_design(50, 20, 1.5, 0.4),
        coverage.rate_design(50, 20, 1.5, 0.95),
        coverage.rate_design(50, 20, 1.5, 0.1, failed=0.2),
        coverage.rate_design(200, 1, 1.5, 0.03),
        coverage.rate_design(200, 1, 1.5, 0.4),
        coverage.score_design(50, 20, 1.5, 0.1),
        coverage.score_design(200, 1, 1.5, 0.4),
        coverage.at_k_design(50, 20, 1.5, 0.1, 5),
    ],
    "paired": [
        coverage.difference_design(50, 20, 1.5, (0.4, 0.1)),
        coverage.difference_design(50, 20, 1.5, (0.4, 0.4)),
        coverage.difference_design(200, 1, 1.5, (0.99, 0.95)),
        coverage.count_difference_design(50, 20, 0.5, 0.4),
    ],
    "recovered": [
        coverage.em_f1_design(((50, 20), (50, 4)), 1.5, (0.4, 0.9)),
        coverage.em_f1_design(((200, 1), (100, 1)), 1.5, (0.9, 0.75)),
    ],
    "log t": [coverage.count_design(50, 20, 0.5), coverage.count_design(20, 20, 0.5)],
}


@of_designs(FAST)
def test_intervals_cover_93_to_97_of_100_truths(method: str, design: Any) -> None:
    found = coverage.measure(design, 1000, seed=1, methods=[method])[method]
    assert found.num_none == 0
    assert 93 <= found.percent <= 97


FEW = {
    "wilson": [
        coverage.rate_design(8, 100, 2.5, 0.95),
        coverage.rate_design(8, 100, 2.5, 0.1),
        coverage.rate_design(50, 20, 1.5, 0.003),
        coverage.score_design(8, 100, 2.5, 0.1),
        coverage.score_design(20, 20, 1.5, 0.1),
    ],
    "paired": [coverage.difference_design(8, 100, 1.5, (0.4, 0.1))],
}


@of_designs(FEW)
def test_few_questions_or_rare_behaviours_have_wide_intervals_rather_than_narrow_ones(
    method: str, design: Any
) -> None:
    found = coverage.measure(design, 600, seed=1, methods=[method])[method]
    assert found.num_none == 0
    assert found.percent >= 94  # 600 studies: 95 give or take 1.8


def test_simulation_sees_an_interval_that_is_too_narrow() -> None:
    # Answers taken for independent: what clustering is there to prevent.
    design = coverage.rate_design(50, 20, 1.5, 0.4)

    def study(rng: np.random.Generator) -> dict:
        values = coverage.flags(rng, (50, 20), 0.4, 1.5)
        return {"naive": lambda: wilson((values > 0).sum(), values.size)}

    naive = coverage.Design(design.figure, design.size, design.truth, study)
    assert coverage.measure(naive, 300, seed=1)["naive"].percent < 75


def test_p_values_find_nothing_where_nothing_is() -> None:
    percent = coverage.false_findings(50, 20, 1.5, 0.4, num_studies=400, seed=1)
    assert 2.5 <= percent <= 7.5
