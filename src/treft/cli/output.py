"""How commands print: one JSON object, or a few lines for people; all else goes to stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import typer
from rich import progress as bars_of
from rich.console import Console

from treft.progress import Progress

EXIT_FAILED = 1
"""A command that ran, and failed in part."""
EXIT_INTERRUPTED = 130
"""What shells expect of a command that Ctrl-C ended."""


def emit(result: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a command's result to stdout: as one JSON object, or one line a key."""
    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=False))
        return
    width = max(map(len, result), default=0)
    for name, value in result.items():
        typer.echo(f"{name:>{width}}  {value}")


@contextlib.contextmanager
def interruptible(say: Callable[[], str]) -> Iterator[None]:
    """Ctrl-C inside ends the command with the shell's code; `say` tells what is kept."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"stopped: {say()}", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


@contextlib.contextmanager
def stdout_aside() -> Iterator[None]:
    """Send what libraries print inside to stderr, so that stdout has the result alone."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def progress_bars() -> Iterator[Progress]:
    """Bars on stderr, one a task; whatever prints to stdout inside goes to stderr, too."""
    columns = (
        bars_of.TextColumn("{task.description}"),
        bars_of.BarColumn(),
        bars_of.MofNCompleteColumn(),
        bars_of.TimeElapsedColumn(),
    )
    with bars_of.Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def report(label: str, done: int, total: int) -> None:
            if done == 0 or label not in tasks:
                tasks[label] = bars.add_task(label, total=total)
            bars.update(tasks[label], completed=done, total=total)

        with stdout_aside():
            yield report
