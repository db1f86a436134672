"""What the trainer logs of its terms: sums on the device, read out only when something is logged.

Training figures are means over optimizer steps, so that `loss` = `sft_loss` + `kv_loss` in every
entry of the log, however steps are accumulated. Evaluation figures are means over what was run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor


class Meter:
    """Weighted sums by name since the last reading, of one mode (training or evaluation).

    Args:
        accelerator: sums are averaged over its processes when read.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = defaultdict(float)
        self._num_steps = 0

    def start_step(self) -> None:
        """An optimizer step begins: what is added until the next one sums up to its figures."""
        self._num_steps += 1

    def add(self, values: Mapping[str, Tensor], weight: float = 0.0) -> None:
        """Add scalar `values`; `weight` is what they are divided by when no steps are counted."""
        for name, value in values.items():
            value = value.detach().to(self._accelerator.device, torch.float32)
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._weights[name] += weight

    def read(self) -> dict[str, float]:
        """Means since the last reading, over all processes; collective, so call it on each."""
        names = list(self._sums)
        if not names:
            return {}
        weights = [float(self._num_steps) or self._weights[name] for name in names]
        sums = torch.stack([self._sums[name] for name in names])
        pair = torch.stack([sums, torch.tensor(weights, dtype=sums.dtype, device=sums.device)])
        total: Tensor = self._accelerator.reduce(pair, reduction="sum")
        self._sums.clear()
        self._weights.clear()
        self._num_steps = 0
        return dict(zip(names, (total[0] / total[1].clamp(min=1e-12)).tolist(), strict=True))
