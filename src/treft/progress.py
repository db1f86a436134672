"""How work that takes long tells how far it is; who listens decides what to show (`treft.cli`)."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as (what is being done, steps done, steps in all)."""


def untold(label: str, done: int, total: int) -> None:
    """Tell nobody: the default of whatever takes a `Progress`."""
