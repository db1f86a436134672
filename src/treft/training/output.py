"""A run and its folder: nothing is overwritten without being asked, and Ctrl-C loses nothing."""

from __future__ import annotations

import logging
import shutil
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from treft.errors import ConfigError
from treft.training.reference_source import REFERENCE_FILE, RUN_FILE

logger = logging.getLogger(__name__)


def find_checkpoint(folder: Path, resume: str | None) -> str | None:
    """Returns the checkpoint that `--resume_from_checkpoint` means.

    Args:
        folder: the run's output folder.
        resume: a checkpoint's path; "true" or "last" for the newest in `folder`; None, "" or
            "false" for a fresh start.

    Raises:
        ConfigError: there is no such checkpoint.
    """
    wish = (resume or "false").strip()
    if wish.lower() in ("false", "no", "0", "none"):
        return None
    if wish.lower() in ("true", "last", "yes", "1"):
        newest = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        if newest is None:
            raise ConfigError(f"there is no checkpoint in {folder} to resume from.")
        return str(newest)
    if not (Path(wish) / "trainer_state.json").is_file():
        raise ConfigError(f"{wish} is not a checkpoint: it has no trainer_state.json.")
    return wish


def claim_output_dir(folder: Path, *, resumes: bool, overwrite: bool) -> None:
    """Make sure that a run may write to `folder`.

    Overwriting removes an earlier run's checkpoints and reference, which would otherwise be taken
    for this run's; other files stay until they are written anew.

    Raises:
        ConfigError: it is a file, or holds files and neither resuming nor overwriting is asked for.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file: name a folder as output_dir.")
    if resumes or not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise ConfigError(
            f"{folder} exists and is not empty: pass --resume_from_checkpoint true to go on, "
            "--overwrite_output_dir to start anew, or another --output_dir."
        )
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / "trainer_state.json").is_file():
            shutil.rmtree(checkpoint)
    for name in (RUN_FILE, REFERENCE_FILE):
        (folder / name).unlink(missing_ok=True)


def run_folder(output_dir: str, checkpoint: str | bool) -> Path:
    """Output folder of the run that wrote `checkpoint` (True: the newest in `output_dir`)."""
    found = get_last_checkpoint(output_dir) if checkpoint is True else str(checkpoint)
    return Path(found).resolve().parent if found else Path(output_dir)


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
