"""`kv_weight: auto`: hold the drift at a budget by steering λ, dual ascent with a damping term.

TReFT with a drift budget b is the problem min L_SFT subject to L_KV ≤ b. Its Lagrangian is
L_SFT + λ (L_KV - b), and ascent on λ, in log λ and in units of the budget, is

    log λ ← log λ + η e,    e = m / b - 1 clipped to [-1, 2],

where m is a moving average of the measured L_KV. Alone that is an integral controller: while a
model is still below its budget it lowers λ for too long, and then swings around the budget. A
second term, κ (e - e of the step before), answers the drift's rise at once (a PI controller in
velocity form).

Nothing winds up: the only memory is λ itself, clipped to its bounds, and the average. Below the
budget λ falls by at most a factor e in 1/η steps.

A measurement stays on the device until the next step begins, when the trainer waits for the device
anyway (it counts that step's conversations), so that steering λ adds no waiting of its own; over
several processes it adds the reduction of one number a step.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Any

from accelerate.utils import reduce
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from treft.errors import ConfigError

logger = logging.getLogger(__name__)

RATE = 0.02
"""η: a run of 300 steps can move λ by e⁶ downwards and e¹² upwards."""
WINDOW = 10.0
"""Steps over which measurements are averaged: the time constant of an exponential average, which is
corrected for its start."""
LOWEST, HIGHEST = 1e-3, 1e4
"""Bounds of λ: "no penalty to speak of", and where gradient clipping would leave nothing of the SFT
loss."""
MAX_ERROR = 2.0
"""Measurements beyond three times the budget count as three times."""


@dataclass
class AutoWeight(TrainerCallback, ExportableState):
    """λ of a run that holds a drift budget: it rises while L_KV is above it and sinks below it.

    The penalty calls `observe` for each micro-batch and `next_weight` when a step begins; as a
    callback this closes each step, and its state travels in `trainer_state.json`.

    Attributes:
        budget: what L_KV is held at, > 0.
        start: λ of the first step.
        damping: κ, how strongly a change of the error is answered at once.
        weight: λ after the measurements that were taken in.
        average: of the measurements; 0 before the first.
        num_steps: measurements taken in.

    Raises:
        ConfigError: the budget is not a positive number, or `start` lies outside the bounds.
    """

    budget: float
    start: float = 1.0
    damping: float = 0.5
    weight: float = field(init=False)
    average: float = field(init=False)
    num_steps: int = field(init=False)
    _sum: Tensor | None = field(init=False, default=None, compare=False)
    _closed: Tensor | None = field(init=False, default=None, compare=False)

    def __post_init__(self) -> None:
        """Validate."""
        if not 0 < self.budget < math.inf:
            raise ConfigError(f"kv_budget must be a positive number, not {self.budget}.")
        if not LOWEST <= self.start <= HIGHEST:
            raise ConfigError(
                f"the weight to start with must lie between {LOWEST:g} and {HIGHEST:g}, "
                f"not {self.start}."
            )
        self.reset()

    def reset(self) -> None:
        """Forget all measurements and begin anew."""
        self.weight, self.average, self.num_steps = float(self.start), 0.0, 0
        self._sum = self._closed = None

    @property
    def error(self) -> float:
        """How far the average is above (+) or below (-) the budget, in budgets, clipped.

        -1 before the first measurement: nothing has drifted.
        """
        return min(max(self.average / self.budget - 1, -1.0), MAX_ERROR)

    def update(self, measured: float) -> None:
        """Take in what the step just made measured, and set `weight` for the next.

        A measurement that is not finite is left out: the run has another problem then, which λ
        should not add to.
        """
        if not math.isfinite(measured):
            return
        before = self.error
        self.num_steps += 1
        seen = 1 - (1 - 1 / WINDOW) ** self.num_steps
        self.average += (measured - self.average) / (WINDOW * seen)
        change = RATE * self.error + self.damping * (self.error - before)
        self.weight = min(max(self.weight * math.exp(change), LOWEST), HIGHEST)

    def observe(self, penalty: Tensor) -> None:
        """Take in a micro-batch's share of the step's L_KV in this process, a scalar."""
        measured = penalty.detach().float()
        self._sum = measured if self._sum is None else self._sum + measured

    def next_weight(self) -> float:
        """λ for the step that begins, after all steps before it; waits for the last step's end."""
        if self._closed is not None:
            self.update(float(self._closed))
            self._closed = None
        return self.weight

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """The step's measurement is whole: average it over the processes."""
        if self._sum is not None:
            self._closed = reduce(self._sum, "mean")
        self._sum = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Begin anew, or go on from the checkpoint's λ."""
        name = type(self).__name__
        kept = state.stateful_callbacks.get(name) if state.global_step else None
        self.reset()
        if kept:
            numbers = kept["attributes"]
            numbers = numbers.get("kept", numbers)  # where earlier versions of treft put them
            for attribute in ("weight", "average", "num_steps"):
                setattr(self, attribute, numbers[attribute])
        elif state.global_step:
            logger.warning("the checkpoint has no λ: kv_weight starts at %s", self.weight)
        state.stateful_callbacks.setdefault(name, {})  # where the trainer writes `state` to

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps, and `from_state` goes on from exactly; plain numbers."""
        weight = self.next_weight()
        return {
            "args": {"budget": self.budget, "start": self.start, "damping": self.damping},
            "attributes": {
                "weight": weight,
                "average": self.average,
                "num_steps": self.num_steps,
            },
        }
