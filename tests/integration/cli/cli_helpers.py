"""What the commands' tests share besides fixtures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

WORDS = ("Where is the bank?", "What is the weather like today? Is it fine?", "The river.")
"""User messages of the folder's rows."""


class Told(NamedTuple):
    """What a command printed."""

    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """All of stdout as one JSON object."""
        found: dict[str, Any] = json.loads(self.out)
        return found


Command = Callable[..., Told]
Refused = Callable[..., str]


def user(*words: str) -> list[dict[str, Any]]:
    """A row for each user message."""
    return [{"messages": [{"role": "user", "content": found}]} for found in words]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """One row a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
