"""The `treft` command."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run `treft` with command-line arguments (those of the process by default).

    Raises:
        SystemExit: always: 0, 2 for something the user can mend, 130 after Ctrl-C.
    """
    from treft.cli.app import run

    run(argv)
