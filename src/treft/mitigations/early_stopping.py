"""Stop when a general score has fallen too far."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTTrainer

from treft.errors import ConfigError
from treft.mitigations.interleave import response_loss
from treft.training.checks import text_tokenizer
from treft.training.terms import Mitigation

logger = logging.getLogger(__name__)

Score = Callable[[nn.Module], float]
"""Higher is better; the model is in the mode it trains in, and must be left in it."""


class StopOnScore(Mitigation):
    """End training once a general score is more than `drop` below the unfinetuned model's.

    Source: early stopping as a mitigation, arXiv 2508.06249 and common practice. Formula: stop
    after the first step n, n divisible by `every`, with s_n < s_0 − drop; s_0 is measured before
    step 1 (of a resumed run, where it goes on). The model is that of step n: choose `every` small
    enough that it does not overshoot much. Cost: the score, every `every` steps; general rows.

    Args:
        score: of the model. Default: minus the mean loss per response token (nats) on `rows`.
        rows: general rows (`messages`) with good answers, for the default score.
        drop: how far it may fall, in the score's units; ≥ 0.
        every: steps between measurements; ≥ 1.

    Raises:
        ConfigError: there is neither a score nor rows, or a number is out of range.
    """

    name: ClassVar[str] = "early_stopping"

    def __init__(
        self,
        score: Score | None = None,
        *,
        rows: Sequence[dict[str, Any]] = (),
        drop: float = 0.1,
        every: int = 10,
    ) -> None:
        if (score is None) == (not rows):
            raise ConfigError("early stopping needs general rows or a score of your own, not both.")
        if not 0 <= drop < float("inf"):
            raise ConfigError(f"stop_drop must be a number of at least 0, not {drop}.")
        if every < 1:
            raise ConfigError(f"stop_every must be at least 1 step, not {every}.")
        self.score = score
        self.general_rows = list(rows)
        self.drop = drop
        self.every = every

    def prepare(self, trainer: SFTTrainer) -> None:
        """Watch the run."""
        score = self.score
        if score is None:
            tokenizer, rows = text_tokenizer(trainer.processing_class), self.general_rows

            def score(model: nn.Module) -> float:
                losses = response_loss(model, tokenizer, rows)
                return -sum(losses) / len(losses)

        trainer.add_callback(_Stop(trainer, score, self.drop, self.every))


class _Stop(TrainerCallback):
    def __init__(self, trainer: SFTTrainer, score: Score, drop: float, every: int) -> None:
        self._trainer = trainer
        self._score = score
        self._drop = drop
        self._every = every
        self._floor = float("-inf")

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self._floor = self._score(self._trainer.model) - self._drop

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> TrainerControl:
        if state.global_step % self._every == 0:
            score = self._score(self._trainer.model)
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
