"""The posterior of a rate against plain integration over its three models."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, log_expit, logsumexp
from statsmodels.stats.proportion import proportion_confint

from treft.statistics.metrics import wilson
from treft.statistics.rate_posterior import posterior_interval

NUM_CHANCES, NUM_DISPERSIONS = 300, 50


def integrated(hits: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Ends of the interval: sums over both parameters' quantiles under their priors."""
    angles = (np.arange(NUM_CHANCES) + 0.5) / NUM_CHANCES * np.pi / 2
    chances = np.sin(angles) ** 2  # quantiles of Jeffreys' prior, Beta(1/2, 1/2)
    levels = (np.arange(NUM_DISPERSIONS) + 0.5) / NUM_DISPERSIONS
    models = [
        [_beta_binomial(hits, sizes, chances, each) for each in stats.beta.ppf(levels, 0.5, 0.5)],
        [_logit_normal(hits, sizes, chances, 2 * each) for each in stats.halfcauchy.ppf(levels)],
    ]
    logs = [logsumexp(found, axis=0) - np.log(NUM_DISPERSIONS) for found in models]
    if all((hits == 0) | (hits == sizes)):
        always = np.count_nonzero(hits)
        logs.append(always * np.log(chances) + (len(hits) - always) * np.log1p(-chances))
    log_mass = logsumexp(logs, axis=0)
    mass = np.exp(log_mass - log_mass.max())
    below = (np.cumsum(mass) - mass / 2) / mass.sum()
    low, high = 100 * np.sin(np.interp([0.025, 0.975], below, angles)) ** 2
    return low, high


def _beta_binomial(
    hits: np.ndarray, sizes: np.ndarray, chances: np.ndarray, correlation: float
) -> np.ndarray:
    total = 1 / correlation - 1
    found = stats.betabinom.logpmf(
        hits[:, None], sizes[:, None], chances * total, (1 - chances) * total
    )
    ways = stats.binom.logpmf(hits, sizes, 0.5) + sizes * np.log(2)  # left out by the others
    return (found - ways[:, None]).sum(0)


def _logit_normal(
    hits: np.ndarray, sizes: np.ndarray, chances: np.ndarray, spread: float
) -> np.ndarray:
    normal = np.linspace(-7, 7, 281)
    weights = stats.norm.pdf(normal) / stats.norm.pdf(normal).sum()
    centres = np.linspace(-5, 5, 801) * (3 + spread)
    means = expit(centres[:, None] + spread * normal) @ weights
    logits = np.interp(chances, means, centres)[:, None] + spread * normal
    often, seldom = log_expit(logits), log_expit(-logits)
    of_questions = [
        logsumexp(hit * often + (size - hit) * seldom, axis=1, b=weights)
        for hit, size in zip(hits, sizes, strict=True)
    ]
    return np.sum(of_questions, axis=0)


@pytest.mark.parametrize(
    ("hits", "sizes"),
    [
        ([1, 3, 0, 7], [10, 10, 10, 10]),
        ([2, 1, 5, 4, 3], [4, 1, 9, 6, 7]),
        ([0, 0, 0, 0, 0, 3], [5, 5, 5, 5, 5, 5]),
        ([6, 6, 0, 6], [6, 6, 6, 6]),
        ([0, 0, 0], [8, 8, 8]),
    ],
    ids=["differing", "unequal sizes", "rare", "all or none", "never"],
)
def test_interval_is_that_of_plain_integration(hits: list[int], sizes: list[int]) -> None:
    found = posterior_interval(np.array(hits, float), np.array(sizes, float))
    low, high = integrated(np.array(hits), np.array(sizes))
    assert found.mean == pytest.approx(100 * sum(hits) / sum(sizes))
    assert found.high == pytest.approx(high, abs=0.3)
    assert found.low == (0 if sum(hits) == 0 else pytest.approx(low, abs=0.3))


def test_questions_all_alike_count_as_answers_and_all_or_none_as_questions() -> None:
    """Here two thirds, with so many questions that their likeness is known."""
    sizes = np.full(300, 12.0)
    alike = posterior_interval(np.full(300, 8.0), sizes)
    assert alike == pytest.approx(wilson(2400, 3600), abs=0.15)
    whole = posterior_interval(np.repeat([12.0, 0.0], [200, 100]), sizes)
    low, high = proportion_confint(200, 300, method="jeffreys")
    assert whole == pytest.approx((200 / 3, 100 * low, 100 * high), abs=0.3)


def test_misses_have_the_mirrored_interval_in_any_order() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 12, 25).astype(float)
    hits = rng.binomial(sizes.astype(int), rng.beta(1, 4, 25)).astype(float)
    found = posterior_interval(hits, sizes)
    mirrored = posterior_interval((sizes - hits)[::-1], sizes[::-1])
    assert (mirrored.low, mirrored.high) == pytest.approx((100 - found.high, 100 - found.low))


@pytest.mark.parametrize(
    ("num", "answers", "rate"), [(1000, 100, 0.01), (8, 1000, 0.4), (2, 2000, 0.97), (400, 2, 0.5)]
)
def test_large_studies_of_questions_that_are_alike(num: int, answers: int, rate: float) -> None:
    """Nothing overflows, and the lattice is fine enough for a thousandth of its range."""
    hits = np.full(num, rate * answers)
    found = posterior_interval(hits, np.full(num, float(answers)))
    plain = wilson(float(hits.sum()), num * answers)
    assert found.low <= plain.low + 0.05
    assert found.high >= plain.high - 0.05
    assert num == 2 or found.high - found.low < 2 * (plain.high - plain.low)


def test_share_of_answers_that_no_model_puts_there_is_in_the_interval() -> None:
    """One question has nearly all answers, and shows the behaviour alone."""
    found = posterior_interval(np.r_[500.0, np.zeros(20)], np.r_[500.0, np.full(20, 2.0)])
    assert found.mean == pytest.approx(100 * 500 / 540)
    assert found.low < 10
    assert found.high == found.mean
