"""The `treft` command."""

from __future__ import annotations

from treft.cli.app import main

__all__ = ["main"]
