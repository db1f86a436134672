"""Intervals of rates and scores against statsmodels and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from made_answers import clusters_of
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from treft.statistics.bounded import bounded_interval, bounded_method
from treft.statistics.clusters import t_interval
from treft.statistics.metrics import wilson


def test_one_flag_a_question_has_wilsons_interval() -> None:
    flags = np.array([100.0] * 7 + [0.0] * 33)
    found = bounded_interval(clusters_of(np.arange(40), flags))
    low, high = proportion_confint(7, 40, method="wilson")
    assert found == pytest.approx((17.5, 100 * low, 100 * high))


@pytest.mark.parametrize("value", [0.0, 100.0])
def test_a_behaviour_never_seen_counts_for_more_than_a_question_and_less_than_an_answer_each(
    value: float,
) -> None:
    """Whether 600 answers to 30 questions are worth 600 or 30 is not known."""
    found = bounded_interval(clusters_of(np.repeat(np.arange(30), 20), np.full(600, value)))
    assert found.mean == value
    assert value in (found.low, found.high)

    def width(num: int) -> float:
        low, high = proportion_confint(0, num, method="jeffreys")
        return 100 * (high - low)

    assert width(600) < found.high - found.low < width(30)


def test_equal_answers_within_questions_count_each_question_once() -> None:
    hit = np.array([100.0] * 12 + [0.0] * 18)
    groups = np.repeat(np.arange(30), 20)
    found = bounded_interval(clusters_of(groups, hit[groups]))
    low, high = proportion_confint(12, 30, method="jeffreys")
    assert found == pytest.approx((40, 100 * low, 100 * high), abs=1)


@pytest.mark.parametrize("often", [0.0, 0.3])
def test_no_rate_has_a_shorter_interval_than_wilsons_at_the_effective_sample_size(
    often: float,
) -> None:
    """Also where questions are of two kinds, which none of the models has."""
    rng = np.random.default_rng(0)
    chances = np.where(np.arange(50) < 50 * often, 0.95, 0.1)
    groups = np.repeat(np.arange(50), 20)
    clusters = clusters_of(groups, 100.0 * (rng.random(1000) < chances[groups]))
    found = bounded_interval(clusters)
    effect = clusters.design_effect
    assert effect is not None
    num = 1000 / max(1, effect)
    plain = wilson(clusters.mean / 100 * num, num)
    assert found.low <= plain.low
    assert found.high >= plain.high
    assert found.high - found.low < 1.5 * (plain.high - plain.low)


def test_the_method_is_named() -> None:
    flags, scores = np.array([0.0, 100.0] * 10), np.array([10.0, 90.0] * 10)
    for groups, values, method in (
        (np.arange(20), flags, "Wilson"),
        (np.arange(20) // 2, flags, "averaged over models of how questions differ"),
        (np.arange(20) // 2, scores, "Wilson at the effective sample size"),
        (np.zeros(20), flags, "Wilson at the effective sample size"),
    ):
        assert bounded_method(clusters_of(groups, values)) == method


def test_independent_answers_have_nearly_the_interval_of_as_many_questions() -> None:
    flags = np.tile([100.0] * 8 + [0.0] * 12, 50)  # eight hits in every question
    found = bounded_interval(clusters_of(np.repeat(np.arange(50), 20), flags))
    low, high = proportion_confint(400, 1000, method="wilson")
    assert found.high - found.low == pytest.approx(100 * (high - low), rel=0.1)
    assert found.high - found.low > 100 * (high - low)


def test_scores_have_nearly_the_t_interval_where_it_fits() -> None:
    values = np.random.default_rng(0).normal(55, 12, 200).clip(0, 100)
    found = bounded_interval(clusters_of(np.arange(200), values))
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found == pytest.approx((values.mean(), expected.low, expected.high), abs=0.1)


def test_intervals_stay_within_bounds_and_keep_a_width() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(9), 5)
    for values in (100 * rng.random(45) ** 20, 100.0 - rng.random(45), np.full(45, 90.0)):
        found = bounded_interval(clusters_of(groups, values))
        assert 0 <= found.low < found.mean < found.high <= 100
    one = bounded_interval(clusters_of(np.zeros(50, int), np.full(50, 100.0)))
    assert one.low < 30, "one question says little about others"
    assert t_interval(3.0, np.zeros(1)) is None
