"""Rank correlation over finetunes, against ranks by hand and planted relations."""

from __future__ import annotations

import numpy as np
import pytest
from rank_correlation import rank_correlation

from treft.errors import DataError


def ranks(values: np.ndarray) -> np.ndarray:
    """Mean ranks of ties."""
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])


def by_hand(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(ranks(one.ravel()), ranks(other.ravel()))[0, 1])


def test_rho_is_the_correlation_of_ranks_ties_included() -> None:
    rng = np.random.default_rng(0)
    signal, score = rng.normal(size=(8, 4)).round(1), rng.normal(size=(8, 4)).round(0)
    found = rank_correlation(signal, score, num_draws=200)
    assert found.pooled.mean == pytest.approx(by_hand(signal, score))
    rows = [by_hand(*pair) for pair in zip(signal, score, strict=True)]
    assert found.within.mean == pytest.approx(np.nanmean(rows))
    assert found.pooled.low < found.pooled.mean < found.pooled.high
    assert (found.num_finetunes, found.num_patches) == (8, 4)


def test_any_monotone_signal_is_perfect_and_noise_is_not() -> None:
    rng = np.random.default_rng(1)
    score = rng.normal(size=(12, 5))
    perfect = rank_correlation(np.exp(score), score, num_draws=200)
    assert perfect.pooled == pytest.approx((1, 1, 1))
    assert perfect.within == pytest.approx((1, 1, 1))
    assert perfect.num_best_alike == 12
    noise = rank_correlation(rng.normal(size=(12, 5)), score, num_draws=500)
    assert noise.pooled.low < 0 < noise.pooled.high
    assert noise.num_best_alike < 8


def test_within_and_pooled_tell_two_things_apart() -> None:
    """The signal says which finetune, and gets the order of patches wrong in each."""
    score = np.array([[10.0 * finetune + patch for patch in range(3)] for finetune in range(6)])
    found = rank_correlation(score[:, ::-1], score, num_draws=100)
    assert found.within.mean == pytest.approx(-1)
    assert found.pooled.mean > 0.9
    assert found.num_best_alike == 0


def test_the_interval_draws_whole_finetunes() -> None:
    """Copies of the same patches add no evidence: the interval stays as wide."""
    rng = np.random.default_rng(2)
    signal = rng.normal(size=(10, 3))
    score = signal + rng.normal(size=(10, 3)) * 2
    once = rank_correlation(signal, score, num_draws=1000)
    often = rank_correlation(np.tile(signal, 8), np.tile(score, 8), num_draws=1000)
    widths = [found.pooled.high - found.pooled.low for found in (once, often)]
    assert widths[1] == pytest.approx(widths[0], rel=0.1)


def test_a_finetune_without_differences_has_no_order() -> None:
    score = np.array([[1.0, 2.0], [1.0, 2.0], [3.0, 3.0]])
    found = rank_correlation(np.array([[1.0, 2.0]] * 3), score, num_draws=100)
    assert found.within.mean == pytest.approx(1)  # of the two that have one


@pytest.mark.parametrize(
    ("signal", "score", "words"),
    [
        (np.ones((3, 2)), np.ones((3, 3)), "do not go together"),
        (np.ones((2, 4)), np.ones((2, 4)), "2 finetunes with 4 patches are too few"),
        (np.ones((4, 1)), np.ones((4, 1)), "too few"),
        (np.full((3, 2), np.nan), np.ones((3, 2)), "not finite"),
        (np.arange(6.0).reshape(3, 2), np.ones((3, 2)), "the score is 1.0 throughout"),
    ],
)
def test_what_has_no_ranks_is_refused(signal: np.ndarray, score: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        rank_correlation(signal, score)
