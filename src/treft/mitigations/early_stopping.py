"""Stop when a general score has fallen too far."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTTrainer

from treft.errors import ConfigError
from treft.mitigations.interleave import response_loss
from treft.training.checks import text_tokenizer
from treft.training.terms import Mitigation, Rows, flag, read_rows

logger = logging.getLogger(__name__)

Score = Callable[[nn.Module], float]
"""Higher is better; the model is in the mode it trains in, and must be left in it."""


@dataclass(eq=False)
class StopOnScore(Mitigation, TrainerCallback):
    """End training once a general score is more than `drop` below the unfinetuned model's.

    Source: early stopping as a mitigation, arXiv 2508.06249 and common practice. Formula: stop
    after the first step n, n divisible by `every`, with s_n < s_0 − drop; s_0 is measured before
    step 1 (of a resumed run, where it goes on). The model is that of step n: choose `every` small
    enough that it does not overshoot much. Cost: the score, every `every` steps; general rows.

    Attributes:
        score: General rows (`messages`) with good answers, whose score is minus the mean loss per
            response token (nats); in Python also a score of your own.
        drop: How far the score may fall, in its units; ≥ 0.
        every: Steps between measurements; ≥ 1.

    Raises:
        ConfigError: there are no rows, or a number is out of range.
        DataError: a file of rows cannot be used.
    """

    name: ClassVar[str] = "early_stopping"

    score: Score | Rows = field(metadata=flag("stop_file", str, needs="general"))
    drop: float = field(default=0.1, metadata=flag("stop_drop", float, needs="strength"))
    every: int = field(default=10, metadata=flag("stop_every", int))

    def __post_init__(self) -> None:
        """Validate, and read the rows."""
        if not callable(self.score):
            self.score = read_rows(self.score)
            if not self.score:
                raise ConfigError("early stopping needs general rows, or a score of your own.")
        if not 0 <= self.drop < float("inf"):
            raise ConfigError(f"stop_drop must be a number of at least 0, not {self.drop}.")
        if self.every < 1:
            raise ConfigError(f"stop_every must be at least 1 step, not {self.every}.")
        self._floor = float("-inf")

    def prepare(self, trainer: SFTTrainer) -> None:
        """Watch the run."""
        self._trainer = trainer
        trainer.add_callback(self)

    def _measure(self) -> float:
        if callable(self.score):
            return self.score(self._trainer.model)
        tokenizer = text_tokenizer(self._trainer.processing_class)
        losses = response_loss(self._trainer.model, tokenizer, read_rows(self.score))
        return -sum(losses) / len(losses)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Measure the unfinetuned model."""
        self._floor = self._measure() - self.drop

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> TrainerControl:
        """Measure every so many steps, and stop below the floor."""
        if state.global_step % self.every == 0:
            score = self._measure()
            should_log = control.should_log  # logging resets it, and the step's own log is due
            self._trainer.log({"general_score": score})
            control.should_log = should_log
            if score < self._floor:
                logger.warning(
                    "stopped after step %d: the general score is %.4g, below %.4g",
                    state.global_step,
                    score,
                    self._floor,
                )
                control.should_training_stop = True
        return control
