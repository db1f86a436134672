"""The SFT loss of an earlier run by step, against which a run with a loss slack is measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers.trainer_utils import get_last_checkpoint

from treft.errors import ConfigError, DataError

STATE_FILE = "trainer_state.json"


@dataclass(frozen=True)
class LossCurve:
    """Mean SFT loss by optimizer step.

    Attributes:
        middles: steps in the middle of what each log entry averages over, ascending.
        losses: the entries' SFT loss.
        max_steps: of the whole run.
        path: where it was read.
    """

    middles: tuple[float, ...]
    losses: tuple[float, ...]
    max_steps: int
    path: Path

    def at(self, step: int) -> float:
        """The loss at a step (from 1), linear between the log's entries."""
        return float(np.interp(step, self.middles, self.losses))

    @classmethod
    def read(cls, path: str | Path) -> LossCurve:
        """Read the log that a Trainer leaves in its checkpoints.

        Args:
            path: a `trainer_state.json`, or a checkpoint, or a run's output folder, of which the
                newest checkpoint is read.

        Raises:
            ConfigError: there is no such file.
            DataError: the file is damaged, or holds no training loss.
        """
        file = _state_file(Path(path))
        try:
            state: dict[str, Any] = json.loads(file.read_text("utf-8"))
            logged = [entry for entry in state["log_history"] if "loss" in entry]
            steps = [int(entry["step"]) for entry in logged]
            losses = [float(entry.get("sft_loss", entry["loss"])) for entry in logged]
            max_steps = int(state["max_steps"])
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{file} is not a Trainer's log ({error!r}).") from error
        if not losses:
            raise DataError(f"{file} holds no training loss: set logging_steps in that run.")
        starts = [0, *steps[:-1]]
        middles = [(start + 1 + end) / 2 for start, end in zip(starts, steps, strict=True)]
        return cls(tuple(middles), tuple(losses), max_steps, file)


def _state_file(path: Path) -> Path:
    newest = get_last_checkpoint(str(path)) if path.is_dir() else None
    candidates = [path, path / STATE_FILE, *([Path(newest) / STATE_FILE] if newest else [])]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ConfigError(
        f"{path} is no {STATE_FILE} and no folder with one: name a checkpoint or the output folder "
        "of a plain run (kv_weight=0) of the same length."
    )
