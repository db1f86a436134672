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

MAX_ERROR = 2.0
"""Measurements beyond three times the limit count as three times."""


@dataclass
class DualAscent:
    """A weight that rises while a measured quantity is above its limit and sinks below it.

    Attributes:
        limit: what the measured quantity is held at, > 0.
        start: the first weight.
        rate: η, the change of the weight's logarithm per step and unit of relative error. At 0.02 a
            run of 300 steps can move the weight by e⁶ downwards and e¹² upwards.
        damping: κ, how strongly a change of the error is answered at once.
        window: steps over which measurements are averaged (the time constant of an exponential
            average, corrected for its start).
        lowest: the weight's lower bound; it stands for "no penalty to speak of".
        highest: its upper bound; beyond it gradient clipping would leave nothing of the SFT loss.
        weight: the weight to use in the next step.
        average: of the measurements; 0 before the first.
        num_steps: measurements seen.

    Raises:
        ConfigError: the limit is not a positive number, or `start` lies outside the bounds.
    """

    limit: float
    start: float = 1.0
    rate: float = 0.02
    damping: float = 0.5
    window: float = 10.0
    lowest: float = 1e-3
    highest: float = 1e4
    weight: float = field(init=False)
    average: float = field(init=False, default=0.0)
    num_steps: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if not 0 < self.limit < math.inf:
            raise ConfigError(f"the limit must be a positive number, not {self.limit}.")
        if not self.lowest <= self.start <= self.highest:
            raise ConfigError(
                f"the weight to start with must lie between {self.lowest:g} and {self.highest:g}, "
                f"not {self.start}."
            )
        self.weight = float(self.start)

    @property
    def error(self) -> float:
        """How far the average is above (+) or below (-) the limit, in limits, clipped.

        -1 before the first measurement: nothing has drifted.
        """
        return min(max(self.average / self.limit - 1, -1.0), MAX_ERROR)

    def update(self, measured: float) -> None:
        """Take in what the step just made measured, and set `weight` for the next.

        A measurement that is not finite is left out: the run has another problem then, which λ
        should not add to.
        """
        if not math.isfinite(measured):
            return
        before = self.error
        self.num_steps += 1
        seen = 1 - (1 - 1 / self.window) ** self.num_steps
        self.average += (measured - self.average) / (self.window * seen)
        change = self.rate * self.error + self.damping * (self.error - before)
        self.weight = min(max(self.weight * math.exp(change), self.lowest), self.highest)

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on exactly; plain numbers."""
        return {"weight": self.weight, "average": self.average, "num_steps": self.num_steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned, within the bounds of this controller."""
        self.weight = min(max(float(state["weight"]), self.lowest), self.highest)
        self.average = float(state["average"])
        self.num_steps = int(state["num_steps"])

    def reset(self) -> None:
        """Forget all measurements and begin anew."""
        self.restore({"weight": self.start, "average": 0.0, "num_steps": 0})


class AutoWeight(TrainerCallback, ExportableState):
    """λ of a run that holds a drift budget.

    The trainer calls `observe` for each micro-batch and reads `weight` when a step begins; as a
    callback this closes each step, and its state travels in `trainer_state.json`.

    Args:
        start: λ of the first step.
        budget: what L_KV is held at.

    Raises:
        ConfigError: the budget or the start is out of range.
    """

    def __init__(self, start: float, budget: float) -> None:
        self._arguments = {"start": start, "budget": budget}
        self.controller = DualAscent(budget, start)
        self._sum: Tensor | None = None
        self._closed: Tensor | None = None

    @property
    def weight(self) -> float:
        """λ for the step that begins, after all steps before it; waits for the last step's end."""
        self._take_in()
        return self.controller.weight

    def _take_in(self) -> None:
        if self._closed is None:
            return
        self.controller.update(float(self._closed))
        self._closed = None

    def observe(self, penalty: Tensor) -> None:
        """Take in a micro-batch's share of the step's L_KV in this process, a scalar."""
        measured = penalty.detach().float()
        self._sum = measured if self._sum is None else self._sum + measured

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
        self._sum = self._closed = None
        name = type(self).__name__
        kept = state.stateful_callbacks.get(name) if state.global_step else None
        self.controller.reset()
        if kept:
            self.controller.restore(kept["attributes"]["kept"])
        elif state.global_step:
            logger.warning("the checkpoint has no λ: kv_weight starts at %s", self.weight)
        state.stateful_callbacks.setdefault(name, {})  # where the trainer writes `state` to

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: how this was made, and the controller."""
        self._take_in()
        return {"args": self._arguments, "attributes": {"kept": self.controller.state()}}
