"""What a cheap signal is worth: its rank correlation with the score that it stands for.

Rows are finetunes, columns are patches. Finetunes are the unit that is drawn at random: patches of
one finetune are not independent of each other, and the interval speaks of other finetunes.

Shapes: F finetunes, S patches, R resamples.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from treft.errors import DataError
from treft.statistics.intervals import FloatArray, Interval

Rows = NDArray[np.int64]

LEAST_FINETUNES = 3
"""Fewer say nothing about others."""


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's ρ of a signal with a score, with 95 % intervals over finetunes.

    Attributes:
        pooled: over all F x S pairs: does a high signal mean a high score, whichever the finetune?
        within: mean over finetunes of ρ over its S patches: does the signal order the patches of
            one finetune, which is what a user needs?
        num_best_alike: finetunes whose best patch by the signal is the best by the score.
        num_finetunes: F.
        num_patches: S.
    """

    pooled: Interval
    within: Interval
    num_best_alike: int
    num_finetunes: int
    num_patches: int


def rank_correlation(
    signal: FloatArray, score: FloatArray, *, num_draws: int = 2000, seed: int = 0
) -> RankCorrelation:
    """Correlate the ranks of two measures of the same finetunes and patches.

    Args:
        signal: the cheap one (F, S).
        score: the one to be foretold (F, S).
        num_draws: resamples R of whole finetunes.
        seed: of the draws.

    Raises:
        DataError: shapes differ, there are fewer than three finetunes or two patches, a value is
            not finite, or one of the two never varies.
    """
    _check(signal, score)
    by_finetune = np.array([_rho(*rows) for rows in zip(signal, score, strict=True)])
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(signal), size=(num_draws, len(signal)))
    return RankCorrelation(
        pooled=_interval(lambda rows: _rho(signal[rows], score[rows]), draws),
        within=_interval(lambda rows: float(_mean(by_finetune[rows])), draws),
        num_best_alike=int((signal.argmax(axis=1) == score.argmax(axis=1)).sum()),
        num_finetunes=len(signal),
        num_patches=signal.shape[1],
    )


def _check(signal: FloatArray, score: FloatArray) -> None:
    if signal.ndim != 2 or signal.shape != score.shape:
        raise DataError(
            f"a signal of {signal.shape} and a score of {score.shape} do not go together."
        )
    if len(signal) < LEAST_FINETUNES or signal.shape[1] < 2:
        raise DataError(
            f"{len(signal)} finetunes with {signal.shape[1]} patches are too few to correlate: "
            f"give at least {LEAST_FINETUNES} with 2."
        )
    if not (np.isfinite(signal).all() and np.isfinite(score).all()):
        raise DataError("a signal or score is not finite: leave that finetune out.")
    for name, values in (("signal", signal), ("score", score)):
        if np.ptp(values) == 0:
            raise DataError(f"the {name} is {values.flat[0]} throughout, so it has no ranks.")


def _rho(signal: FloatArray, score: FloatArray) -> float:
    """Spearman's ρ of all values; NaN where one side does not vary."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        return float(stats.spearmanr(signal.ravel(), score.ravel()).statistic)


def _mean(values: FloatArray) -> float:
    """Of finetunes whose patches differ at all; NaN if there is none."""
    kept = values[np.isfinite(values)]
    return float(kept.mean()) if len(kept) else float("nan")


def _interval(figure: Callable[[Rows], float], draws: Rows) -> Interval:
    """Percentiles over resamples in which the figure is defined."""
    value = figure(np.arange(draws.shape[1]))
    found = np.array([figure(rows) for rows in draws])
    low, high = np.nanquantile(found, (0.025, 0.975))
    return Interval(value, float(low), float(high))
