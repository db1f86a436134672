"""Scores and intervals, against printed tables, worked values, statsmodels, scipy and Inspect."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import statsmodels.api as sm
from inspect_ai.scorer import SampleScore, Score, stderr
from made_answers import clusters_of
from scipy import stats
from scipy.stats import ttest_1samp
from statsmodels.stats.proportion import proportion_confint

from treft.errors import ConfigError, DataError
from treft.statistics.intervals import (
    Clusters,
    Interval,
    clustered_variance,
    count_interval,
    difference_interval,
    em_f1,
    em_f1_interval,
    over_runs,
    percent_interval,
    permutation_p_value,
    t_interval,
    wilson,
)


def clustered_error(contributions: np.ndarray) -> float:
    return math.sqrt(clustered_variance(contributions))


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
    assert clustered_error(found.contributions) == pytest.approx(fit.bse[0])
    interval = t_interval(found.mean, found.contributions)
    assert interval == pytest.approx((found.mean, *fit.conf_int()[0]))


def test_standard_error_is_inspects() -> None:
    groups, values = unbalanced(1)
    scores = [
        SampleScore(score=Score(value=float(value)), sample_metadata={"question_id": int(group)})
        for group, value in zip(groups, values, strict=True)
    ]
    expected = stderr(cluster="question_id")(scores)
    assert clustered_error(clusters_of(groups, values).contributions) == pytest.approx(expected)


def test_difference_of_arms_has_statsmodels_clustered_error() -> None:
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
    assert clustered_error(arm.contributions - base.contributions) == pytest.approx(expected)


def test_no_value_is_refused() -> None:
    with pytest.raises(DataError, match="no value"):
        Clusters.of([])


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


def test_one_flag_a_question_has_wilsons_interval() -> None:
    flags = np.array([100.0] * 7 + [0.0] * 33)
    found, method = percent_interval(clusters_of(np.arange(40), flags))
    low, high = proportion_confint(7, 40, method="wilson")
    assert found == pytest.approx((17.5, 100 * low, 100 * high))
    assert method == "Wilson"


def test_several_flags_a_question_have_wilsons_interval_at_the_effective_size() -> None:
    """The design effect from statsmodels, Student's t by Korn and Graubard's effective size."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 10)
    values = 100.0 * (rng.random(200) < rng.beta(1, 2, 20)[groups])
    fit = sm.OLS(values, np.ones(200)).fit(cov_type="cluster", cov_kwds={"groups": groups})
    share = values.mean() / 100
    size = share * (1 - share) / (fit.bse[0] / 100) ** 2
    size *= (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 19)) ** 2
    low, high = proportion_confint(share * size, size, method="wilson")
    found, method = percent_interval(clusters_of(groups, values))
    assert found == pytest.approx((100 * share, 100 * low, 100 * high))
    assert method == "Wilson at the effective sample size"


def test_answers_less_alike_than_independent_ones_count_as_independent() -> None:
    flags = np.tile([100.0] * 8 + [0.0] * 12, 50)  # eight hits in every question
    found, _ = percent_interval(clusters_of(np.repeat(np.arange(50), 20), flags))
    assert found == pytest.approx(wilson(400, 1000, stats.t.ppf(0.975, 49)))


@pytest.mark.parametrize("value", [0.0, 100.0, 90.0])
def test_where_all_values_are_equal_each_question_counts_once(value: float) -> None:
    """Whether 600 answers to 30 questions are worth 600 or 30 is not known."""
    found, method = percent_interval(clusters_of(np.repeat(np.arange(30), 20), np.full(600, value)))
    assert found == pytest.approx(wilson(0.3 * value, 30))
    assert method == "Wilson at the effective sample size"
    one, _ = percent_interval(clusters_of(np.zeros(50, int), np.full(50, 100.0)))
    assert one.low < 30, "one question says little about others"


def test_scores_have_the_t_interval_within_bounds() -> None:
    values = np.random.default_rng(0).normal(55, 12, 200).clip(0, 100)
    found, method = percent_interval(clusters_of(np.arange(200), values))
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert found == pytest.approx((values.mean(), expected.low, expected.high))
    assert method == "clustered t"
    rng = np.random.default_rng(0)
    for values in (100 * rng.random(45) ** 20, 100.0 - rng.random(45), np.tile([10.0, 90, 20], 15)):
        found, _ = percent_interval(clusters_of(np.arange(45) // 3, values))
        assert 0 <= found.low < found.mean < found.high <= 100


def test_counts_have_the_t_interval_and_no_negative_end() -> None:
    found = count_interval(clusters_of(np.arange(5), np.array([1.0, 2, 3, 4, 5])))
    expected = ttest_1samp([1, 2, 3, 4, 5], 0).confidence_interval(0.95)
    assert found == pytest.approx((3, expected.low, expected.high))
    found = count_interval(clusters_of(np.arange(4), np.array([0.0, 0, 0, 90])))
    assert found is not None
    assert found.low == 0
    assert count_interval(clusters_of(np.zeros(5, int), np.arange(5.0))) is None
    assert count_interval(clusters_of(np.arange(5), np.full(5, 7.0))) is None, "all are equal"


def test_t_interval_of_two_question_sets_adds_variances_and_degrees_of_freedom() -> None:
    first, second = np.array([1.0, -2, 1]), np.array([3.0, -1, -1, -1])
    found = t_interval(5.0, first, second)
    assert found is not None
    error = math.sqrt(3 / 2 * 6 + 4 / 3 * 12)
    assert found.high - 5 == pytest.approx(stats.t.ppf(0.975, 5) * error)
    assert t_interval(5.0, first, np.zeros(1)) is None
    assert t_interval(5.0, np.zeros(3)) is None


def test_difference_without_variation_reaches_as_far_as_both_intervals() -> None:
    first, second = Interval(0, 0, 10), Interval(0, 0, 8)
    assert difference_interval(first, second, np.zeros(30)) == (0, -8, 10)
    moved = np.array([1.0, -2, 1])
    assert difference_interval(first, second, moved) == t_interval(0.0, moved)
