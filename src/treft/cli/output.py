"""How commands print: one JSON object, or a few lines for people; all else goes to stderr."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from treft.arms import Progress

__all__ = ["emit", "progress_bars", "quiet_libraries"]


def emit(result: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a command's result to stdout: as one JSON object, or one line a key."""
    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=False))
        return
    width = max(map(len, result), default=0)
    for name, value in result.items():
        typer.echo(f"{name:>{width}}  {value}")


def quiet_libraries() -> None:
    """Keep the libraries' bars and notes away from ours; errors still show."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    for name in ("trl", "accelerate", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


@contextlib.contextmanager
def progress_bars() -> Iterator[Progress]:
    """Bars on stderr, one a task; whatever prints to stdout inside goes to stderr, too."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Elapsed())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def report(label: str, done: int, total: int) -> None:
            if done == 0 or label not in tasks:
                tasks[label] = bars.add_task(label, total=total)
            bars.update(tasks[label], completed=done, total=total)

        with contextlib.redirect_stdout(sys.stderr):
            yield report
