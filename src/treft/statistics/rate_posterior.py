"""Interval of a rate from several answers to each question, without assuming how questions differ.

Whether 20 answers to a question are worth one or twenty depends on how much the chance of the
behaviour differs between questions, which few questions, or a rare behaviour, hardly tell. So three
models of it are weighed by what the answers say of each, with equal weights before:

- beta-binomial: a question's chance has a beta distribution;
- logit-normal: its logit has a normal distribution;
- all or none: each question shows the behaviour always or never.

The mean chance over questions has Jeffreys' prior. So has the intraclass correlation of the
beta-binomial (as a share, Beta(1/2, 1/2)); the standard deviation of the logit has a half-Cauchy
with scale 2. Both are flat in the standard deviation near 0. What is reported is the equal-tailed
95 % interval of the mean chance. docs/statistics.md has its coverage.

Shapes: C questions, P lattice points of the mean chance, D of a model's dispersion.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.special import expit, gammaln, log_expit, logsumexp, ndtr

from treft.statistics.clusters import FloatArray
from treft.statistics.metrics import Interval

TAILS = (0.025, 0.975)
DISPERSIONS = 24
"""D: on a lattice of the logarithm, between dispersions that no data tells from none and extremes
(a logit's standard deviation of 20). Likelihoods are smooth there; a spline fills in between."""
FINER = 4
WIDEST_SPREAD, PRIOR_SPREAD = 20.0, 2.0
LARGEST_LOGIT = 15.0
"""Chances closer to 0 or 1 than this are as good as those."""
NEGLIGIBLE = 30.0
"""Below the largest log-density by this, none of an interval's 95 % are found."""
CLIFF, SLOPE, MARGIN = 1000.0, 200.0, 8
"""A spline swings where it meets a cliff. So log-likelihoods end this far below the largest of all,
and of those with the same mean chance, and a spline so many lattice points beyond what counts."""
STEPS = 400


def posterior_interval(hits: FloatArray, sizes: FloatArray) -> Interval:
    """Rate over all questions there could be, in percent.

    Args:
        hits: answers to each question that show the behaviour (C,), C > 1.
        sizes: answers to each question (C,), none of them 0.

    Returns:
        The share of all answers with the interval. It reaches to 0 where no answer shows the
        behaviour, to 100 where all do, and as far as the share in any case.
    """
    low, high = _quantiles(_Lattice.of(sizes), hits, sizes)
    share = float(hits.sum() / sizes.sum())
    low = 0.0 if share == 0 else min(low, share)
    high = 1.0 if share == 1 else max(high, share)
    return Interval(100 * share, 100 * low, 100 * high)


class _Lattice(NamedTuple):
    """What likelihoods are computed on. Few sizes, so that what is made for one serves again.

    Attributes:
        points: P. Mean chances are denser towards 0 and 1, where likelihoods bend most.
        answers: to a question, or up to twice as many; the finest dispersion depends on it.
    """

    points: int
    answers: int

    @classmethod
    def of(cls, sizes: FloatArray) -> _Lattice:
        points = 32 + 8 * math.ceil(math.sqrt(len(sizes)) + math.sqrt(float(sizes.sum())) / 8)
        return cls(points, 2 ** math.ceil(math.log2(max(2.0, float(sizes.max())))))


class _Dispersions(NamedTuple):
    """Of both models (D,): a logit's standard deviation, and an intraclass correlation's logit."""

    log_spread: FloatArray
    correlation_logit: FloatArray


def _quantiles(lattice: _Lattice, hits: FloatArray, sizes: FloatArray) -> tuple[float, float]:
    models = [
        (np.maximum(found, found.max() - CLIFF), prior)
        for found, prior in zip(
            _log_likelihoods(lattice, hits, sizes), _log_priors(lattice), strict=True
        )
    ]
    places = _places(lattice)

    coarse = [logsumexp(found + prior[::FINER], axis=1) for found, prior in models]
    density = np.logaddexp.reduce([*coarse, _all_or_none(hits, sizes, _shares(places))])
    near = np.flatnonzero(density > density.max() - NEGLIGIBLE)
    first, last = max(0, near[0] - 1), min(lattice.points - 1, near[-1] + 1)
    around = slice(max(0, first - MARGIN), last + 1 + MARGIN)

    fine = np.linspace(places[first], places[last], STEPS)
    smooth = [
        _over_dispersions(CubicSpline(places[around], found[around])(fine), prior)
        for found, prior in models
    ]
    density = np.logaddexp.reduce([*smooth, _all_or_none(hits, sizes, _shares(fine))])
    density += np.log(np.sin(np.pi * fine))  # Jeffreys' prior as a density of places
    mass = np.exp(density - density.max())
    below = np.concatenate(([0.0], np.cumsum(mass[1:] + mass[:-1])))
    low, high = _shares(np.interp(TAILS, below / below[-1], fine))
    return float(low), float(high)


def _over_dispersions(log_likelihood: FloatArray, log_prior: FloatArray) -> FloatArray:
    """Log-likelihood of each mean chance, from that of each with each dispersion (..., D)."""
    largest = log_likelihood.max(axis=1, keepdims=True)
    level = np.maximum(log_likelihood, largest - SLOPE)
    found: FloatArray = logsumexp(level @ _finer().T + log_prior, axis=1)
    return found


def _places(lattice: _Lattice) -> FloatArray:
    """Of the lattice's mean chances, from 0 to 1 (P,)."""
    places: FloatArray = (np.arange(lattice.points) + 0.5) / lattice.points
    return places


def _shares(places: FloatArray) -> FloatArray:
    """Mean chances at places from 0 to 1. Jeffreys' prior is flat in the arcsine of their root."""
    shares: FloatArray = np.sin(np.pi / 4 * (1 - np.cos(np.pi * places))) ** 2
    return shares


def _all_or_none(hits: FloatArray, sizes: FloatArray, shares: FloatArray) -> FloatArray:
    """Log-likelihood of mean chances (P,) where a question shows the behaviour always or never."""
    always, never = np.count_nonzero(hits == sizes), np.count_nonzero(hits == 0)
    if always + never < len(hits):
        return np.full(len(shares), -np.inf)
    found: FloatArray = always * np.log(shares) + never * np.log1p(-shares)
    return found


def _log_likelihoods(
    lattice: _Lattice, hits: FloatArray, sizes: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Of the logit-normal and the beta-binomial, but for binomial coefficients (P, D) each."""
    normal, beta = np.zeros((2, lattice.points, DISPERSIONS))
    rows, times = np.unique(np.stack((hits, sizes), axis=1), axis=0, return_counts=True)
    for (hit, size), num in zip(rows, times, strict=True):
        of_normal, of_beta = _of_question(lattice, float(hit), float(size))
        normal += num * of_normal
        beta += num * of_beta
    return normal, beta


@lru_cache(maxsize=256)
def _of_question(lattice: _Lattice, hits: float, size: float) -> tuple[FloatArray, FloatArray]:
    """One question's part of the log-likelihoods."""
    logits, likely = _logit_normal(lattice)
    binomial = hits * log_expit(logits) + (size - hits) * log_expit(-logits)
    largest = binomial.max()
    likelihood = likely @ np.exp(binomial - largest)
    normal = np.log(np.maximum(likelihood, 1e-300)) + largest

    total = np.exp(-_dispersions(lattice).correlation_logit)  # of the beta's two parameters
    shares = _shares(_places(lattice))[:, None]
    first, second = shares * total, (1 - shares) * total
    beta = gammaln(hits + first) - gammaln(first) + gammaln(size - hits + second)
    beta += gammaln(total) - gammaln(second) - gammaln(size + total)
    return normal, beta


@lru_cache(maxsize=16)
def _dispersions(lattice: _Lattice) -> _Dispersions:
    """From a design effect of about 1.06, whatever the number of answers."""
    finest = 0.5 / math.sqrt(lattice.answers)
    least = 0.06 / lattice.answers
    return _Dispersions(
        np.linspace(math.log(finest), math.log(WIDEST_SPREAD), DISPERSIONS),
        np.linspace(math.log(least / (1 - least)), 5.0, DISPERSIONS),
    )


@lru_cache(maxsize=16)
def _log_priors(lattice: _Lattice) -> tuple[FloatArray, FloatArray]:
    """Of the dispersions, between the lattice's, too; the ends stand for all beyond them."""
    between = _finer()
    spread, correlation = (between @ values for values in _dispersions(lattice))

    def of_cells(values: FloatArray, angle: Callable[[FloatArray], FloatArray]) -> FloatArray:
        below = 2 / np.pi * angle((values[1:] + values[:-1]) / 2)
        cells: FloatArray = np.log(np.diff(below, prepend=0.0, append=1.0))
        return cells

    return (
        of_cells(spread, lambda logs: np.arctan(np.exp(logs) / PRIOR_SPREAD)),
        of_cells(correlation, lambda logits: np.arcsin(np.sqrt(expit(logits)))),
    )


@lru_cache(maxsize=1)
def _finer() -> FloatArray:
    """From values at a model's dispersions to a lattice FINER times as fine, by a spline."""
    at = np.linspace(0, DISPERSIONS - 1, (DISPERSIONS - 1) * FINER + 1)
    matrix: FloatArray = CubicSpline(np.arange(DISPERSIONS), np.eye(DISPERSIONS))(at)
    return matrix


@lru_cache(maxsize=4)
def _logit_normal(lattice: _Lattice) -> tuple[FloatArray, FloatArray]:
    """Logits (L,), and how likely each is at each mean chance and dispersion (P, D, L).

    Logits are as far apart as the least standard deviation; the ends stand for all beyond them.
    """
    spreads = np.exp(_dispersions(lattice).log_spread)
    logits = np.arange(-LARGEST_LOGIT, LARGEST_LOGIT, spreads[0])
    edges = (logits[1:] + logits[:-1]) / 2
    shares = _shares(_places(lattice))
    likely = np.empty((lattice.points, DISPERSIONS, len(logits)))
    for at, spread in enumerate(spreads):
        below = ndtr((edges - _centres(float(spread), shares)[:, None]) / spread)
        likely[:, at] = np.diff(below, axis=1, prepend=0.0, append=1.0)
    return logits, likely


def _centres(spread: float, shares: FloatArray) -> FloatArray:
    """Means of normal logits for which mean chances are `shares`."""
    found: FloatArray = np.interp(shares, *_mean_chances(spread))
    return found


@lru_cache(maxsize=4 * DISPERSIONS)
def _mean_chances(spread: float) -> tuple[FloatArray, FloatArray]:
    """Mean chances, rising, and the means of normal logits that have them."""
    centres, normal = np.linspace(-140, 140, 5601), np.linspace(-7, 7, 141)
    weights = np.exp(-(normal**2) / 2)
    return expit(centres[:, None] + spread * normal) @ (weights / weights.sum()), centres
