"""THE share of a loss that a patch regains, with its interval over prompts.

A finetune lowers a measure on each prompt (its *fall*, base - finetuned); a patch brings some of it
back (its *gain*, patched - finetuned). The share is Σ gains / Σ falls: 1 for all of it, 0 for none.

Shapes: P prompts, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from treft.statistics.intervals import FloatArray, Interval

NUM_RESAMPLES = 4000


@dataclass(frozen=True)
class Share:
    """What a patch regains.

    Attributes:
        interval: the share.
        draws: shares of the resamples (R,).
    """

    interval: Interval
    draws: FloatArray


@dataclass(frozen=True)
class Loss:
    """What a finetune lost, and one bootstrap over prompts for it and for all shares of it.

    Attributes:
        falls: of each prompt (P,).
        weights: of the prompts in each resample (R, P); rows sum to 1.
        confidence: of the intervals.
    """

    falls: FloatArray
    weights: FloatArray
    confidence: float

    @classmethod
    def of(
        cls,
        falls: FloatArray,
        *,
        num_resamples: int = NUM_RESAMPLES,
        seed: int = 0,
        confidence: float = 0.95,
    ) -> Loss:
        """Draw the resamples.

        Args:
            falls: base less finetuned on each prompt (P,).
            num_resamples: R.
            seed: of the draws.
            confidence: of the intervals.
        """
        num = len(falls)
        counts = np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), num_resamples)
        return cls(falls, counts / num, confidence)

    @property
    def interval(self) -> Interval:
        """The mean fall."""
        return interval_of(float(self.falls.mean()), self.weights @ self.falls, self.confidence)

    @property
    def is_sure(self) -> bool:
        """Tells whether anything was surely lost; without that a share means nothing."""
        return self.interval.low > 0

    def share(self, gains: FloatArray) -> Share:
        """Returns what a patch regains of a sure loss.

        Args:
            gains: patched less finetuned on each prompt (P,).
        """
        lost = self.weights @ self.falls
        # The draws of a small loss may touch 0 although its interval does not.
        draws: FloatArray = (self.weights @ gains) / np.maximum(lost, 1e-9)
        value = float(gains.mean() / self.falls.mean())
        return Share(interval_of(value, draws, self.confidence), draws)


def interval_of(value: float, draws: FloatArray, confidence: float = 0.95) -> Interval:
    """Returns a value with the percentiles of its resamples."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, (tail, 1 - tail))
    return Interval(value, float(low), float(high))
