"""`kv_weight: auto`: feed each step's drift or loss to the controller, and keep it in checkpoints.

A measurement stays on the device until the next step begins, when the trainer waits for the device
anyway (it counts that step's conversations), so that steering λ adds no waiting of its own; over
several processes it adds the reduction of one number a step.
"""

from __future__ import annotations

import logging
from typing import Any

from accelerate.utils import reduce
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from treft.errors import ConfigError
from treft.training.dual import DualAscent
from treft.training.loss_curve import LossCurve

logger = logging.getLogger(__name__)


class AutoWeight(TrainerCallback, ExportableState):
    """λ of a run that holds a drift budget, or a slack of the SFT loss over a plain run's.

    The trainer calls `observe` for each micro-batch and reads `weight` when a step begins; as a
    callback this closes each step, and its state travels in `trainer_state.json`.

    Args:
        start: λ of the first step.
        budget: what L_KV is held at; None to hold a loss slack.
        slack: how far the SFT loss is to stay above the plain run's, in nats a token.
        log: the plain run's log, see `LossCurve.read`.

    Raises:
        ConfigError: a limit or the start is out of range, or there is no such log.
        DataError: the log cannot be read.
    """

    def __init__(
        self,
        start: float,
        budget: float | None = None,
        slack: float | None = None,
        log: str | None = None,
    ) -> None:
        assert (budget is None) != (slack is None)
        assert (slack is None) == (log is None)
        self._arguments = {"start": start, "budget": budget, "slack": slack, "log": log}
        self._curve = None if log is None else LossCurve.read(log)
        limit = budget if budget is not None else slack
        assert limit is not None
        self.controller = DualAscent(limit, start, lowers=budget is not None)
        self._sum: Tensor | None = None
        self._closed: Tensor | None = None
        self._step = 0

    @property
    def weight(self) -> float:
        """λ for the step that begins, after all steps before it; waits for the last step's end."""
        self._take_in()
        return self.controller.weight

    def _take_in(self) -> None:
        if self._closed is None:
            return
        measured = float(self._closed)
        if self._curve is not None:
            measured -= self._curve.at(self._step)
        self.controller.update(measured)
        self._closed = None

    def observe(self, penalty: Tensor, sft_loss: Tensor) -> None:
        """A micro-batch's share of the step's L_KV and SFT loss in this process, scalars."""
        measured = (penalty if self._curve is None else sft_loss).detach().float()
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
        self._sum, self._step = None, state.global_step

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Begin anew, or go on from the checkpoint's λ.

        Raises:
            ConfigError: the plain run was of another length, so its loss at a step is no measure.
        """
        if self._curve is not None and self._curve.max_steps != state.max_steps:
            raise ConfigError(
                f"the run of {self._curve.path} takes {self._curve.max_steps} steps, this one "
                f"{state.max_steps}: losses compare step by step only at equal settings."
            )
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
