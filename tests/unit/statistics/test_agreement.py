"""Agreement of judges against published examples, statsmodels, Inspect and simulation."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from inspect_ai.scorer import SampleScore, Score
from inspect_ai.scorer import krippendorff_alpha as inspect_alpha
from scipy import stats
from statsmodels.stats.inter_rater import cohens_kappa

from treft.errors import ConfigError, DataError
from treft.files import as_json
from treft.statistics.agreement import (
    agreement,
    cohen_kappa,
    jackknife,
    krippendorff_alpha,
    spearman,
)
from treft.statistics.records import Judgement, ScoredAnswer

NONE = float("nan")
FOUR_OBSERVERS = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NONE, NONE, NONE],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NONE, 3],
        [NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NONE],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NONE],
    ]
).T
"""Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), example C."""


def test_alpha_is_krippendorffs_published_one() -> None:
    assert krippendorff_alpha(FOUR_OBSERVERS) == pytest.approx(0.849, abs=5e-4)


def test_alpha_of_two_observers_is_the_published_one() -> None:
    # Example A of the same paper: binary data, ten units, alpha = 0.095.
    pairs = np.array([[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]], float).T
    assert krippendorff_alpha(pairs) == pytest.approx(0.095, abs=5e-4)


@pytest.mark.parametrize("level", ["nominal", "interval"])
def test_alpha_is_inspects(level: Any) -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, (60, 1))
    ratings = np.clip(truth + rng.integers(-1, 2, (60, 3)), 0, 4).astype(float)
    ratings = ratings > 2.0 if level == "nominal" else ratings
    ratings = ratings.astype(float)
    ratings[rng.random(ratings.shape) < 0.25] = NONE
    units = [
        [str(v) if level == "nominal" else v for v in row[np.isfinite(row)]] for row in ratings
    ]
    expected = inspect_alpha(level)([SampleScore(score=Score(value=unit)) for unit in units])
    assert krippendorff_alpha(ratings) == pytest.approx(expected)


def test_kappa_is_statsmodels() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 2, 200)
    second = np.where(rng.random(200) < 0.7, first, rng.integers(0, 2, 200))
    table = np.zeros((2, 2))
    np.add.at(table, (first, second), 1)
    expected = cohens_kappa(table).kappa
    assert cohen_kappa(np.stack((first, second), 1).astype(float)) == pytest.approx(expected)


def test_spearman_ranks_ties_in_the_middle() -> None:
    # Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: Pearson of these is 4.5 / sqrt(4.5 * 5).
    scores = np.array([[5, 10], [20, 80], [20, 50], [90, 99]], float)
    assert spearman(scores) == pytest.approx(4.5 / np.sqrt(4.5 * 5))


def test_spearman_is_scipys() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 12, (300, 2)) + rng.integers(0, 12, (300, 1)).astype(float)
    assert spearman(scores) == pytest.approx(stats.spearmanr(scores).statistic)


def test_coefficients_of_constant_ratings_are_undefined() -> None:
    constant = np.column_stack((np.ones(20), np.ones(20)))
    half = np.column_stack((np.ones(20), np.arange(20.0)))
    assert cohen_kappa(constant) is krippendorff_alpha(constant) is spearman(half) is None
    assert krippendorff_alpha(np.array([[1.0, NONE]])) is None
    found = jackknife(cohen_kappa, constant, np.arange(20).astype(str))
    assert (found.value, found.low, found.high) == (None, None, None)


def test_jackknife_of_independent_answers_is_fishers_interval() -> None:
    rng = np.random.default_rng(0)
    first = rng.standard_normal(400)
    scores = np.column_stack((first, first + rng.standard_normal(400)))

    def pearson(rows: np.ndarray) -> float:
        return float(stats.pearsonr(rows[:, 0], rows[:, 1]).statistic)

    found = jackknife(pearson, scores, np.arange(400).astype(str))
    expected = stats.pearsonr(*scores.T).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_jackknife_leaves_out_whole_questions() -> None:
    rng = np.random.default_rng(0)
    few = rng.standard_normal((40, 2)) + rng.standard_normal((40, 1))
    copies = np.repeat(few, 10, axis=0)
    one = jackknife(spearman, few, np.arange(40).astype(str))
    many = jackknife(spearman, copies, np.repeat(np.arange(40), 10).astype(str))
    assert (many.value, many.low, many.high) == pytest.approx((one.value, one.low, one.high))


def answers(ratings: dict[str, list[float | None]], samples: int = 2) -> list[ScoredAnswer]:
    """Answers with alignments by judge; None: the judge failed."""
    rows = zip(*ratings.values(), strict=True)
    return [
        ScoredAnswer(
            f"q{row // samples}",
            "c",
            row % samples + 1,
            "?",
            "!",
            tuple(
                Judgement(judge, value, None, "missing" if value is None else "scored", "text")
                for judge, value in zip(ratings, values, strict=True)
            ),
        )
        for row, values in enumerate(rows)
    ]


def test_agreement_uses_what_both_judges_scored() -> None:
    ratings: dict[str, list[float | None]] = {
        "one": [90, 80, 10, 20, None, 90, 5, 70],
        "two": [95, 20, 15, None, 10, 80, 10, 60],
        "three": [90, 90, None, None, None, 90, 80, None],
    }
    found = agreement(answers(ratings), list(ratings))
    assert [pair.judges for pair in found.pairs] == [
        ("one", "two"),
        ("one", "three"),
        ("two", "three"),
    ]
    assert [pair.num_answers for pair in found.pairs] == [6, 4, 4]
    assert (found.num_answers, found.num_questions) == (6, 4)
    first = found.pairs[0]
    assert first.flagged == (pytest.approx(100 / 3), 50)
    # Flags of the six: 001010 and 011010; both 2, first alone 0, second alone 1, neither 3.
    assert first.kappa.value == pytest.approx(cohens_kappa([[3, 1], [0, 2]]).kappa)
    expected = stats.spearmanr([90, 80, 10, 90, 5, 70], [95, 20, 15, 80, 10, 60]).statistic
    assert first.spearman.value == pytest.approx(expected)
    table = np.array([[NONE if v is None else v for v in column] for column in ratings.values()]).T
    assert found.alpha_scores.value == pytest.approx(krippendorff_alpha(table))
    flags = np.where(np.isnan(table), NONE, table < 30)
    assert found.alpha_flags.value == pytest.approx(krippendorff_alpha(flags))
    json.dumps(as_json(found))


def test_perfect_agreement_has_no_interval_rather_than_none_of_width() -> None:
    ratings: dict[str, list[float | None]] = {j: [90, 10, 80, 20, 70, 5] for j in ("one", "two")}
    pair = agreement(answers(ratings), list(ratings)).pairs[0]
    assert (pair.kappa.value, pair.kappa.low, pair.kappa.high) == (1, None, None)


def test_agreement_takes_different_judges_with_answers_in_common() -> None:
    given = answers({"one": [90, None], "two": [None, 10], "three": [1, 2]})
    with pytest.raises(ConfigError, match="two different judges"):
        agreement(given, ["one", "one"])
    with pytest.raises(DataError, match="judged by 'four'"):
        agreement(given, ["one", "four"])
    with pytest.raises(DataError, match="one and two scored no answer in common"):
        agreement(given, ["one", "two", "three"])
