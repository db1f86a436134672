"""Stop a run on Ctrl-C so that it can be resumed without loss."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)


class StopOnInterrupt(TrainerCallback):
    """On the first Ctrl-C finish the step, save a checkpoint and stop; on the second stop at once.

    Use it around training, and give it to the trainer as a callback:

        with StopOnInterrupt() as interrupt:
            trainer.add_callback(interrupt)
            trainer.train()

    Attributes:
        interrupted: whether Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._previous: Any = None

    def __enter__(self) -> StopOnInterrupt:
        if threading.current_thread() is threading.main_thread():  # only there are signals handled
            self._previous = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        logger.warning("interrupted: finishing this step and saving a checkpoint (again: quit now)")

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> TrainerControl:
        """Ask the trainer to save and stop once Ctrl-C was pressed."""
        if self.interrupted:
            control.should_save = True
            control.should_training_stop = True
        return control
