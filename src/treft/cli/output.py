"""How commands print: one JSON object, or a few lines for people; all else goes to stderr."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from treft.errors import ConfigError

if TYPE_CHECKING:
    from treft.study.organism_training import Progress


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


def claim_file(path: Path, *, overwrite: bool) -> None:
    """Make sure, before any work, that a file can be written in the end.

    Raises:
        ConfigError: it exists and `overwrite` is false, or nothing can be written there.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: name a file as --output.")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists: choose another --output, or pass --overwrite.")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigError(f"{path} cannot be written: {parent} is not a folder that you may write.")


def confirm_calls(num_calls: int, kind: str, max_calls: int, *, yes: bool) -> None:
    """Above the limit ask whether to go on, unless `yes` has answered already.

    Args:
        num_calls: calls that are to come, at most.
        kind: what they are, in words, such as `judge calls`.
        max_calls: the limit.
        yes: go on without asking.

    Raises:
        ConfigError: above the limit, and nobody is there to answer.
    """
    if num_calls <= max_calls or yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(
            f"{num_calls:,} {kind} are more than --max-calls {max_calls:,}: raise it, or "
            "pass --yes."
        )
    typer.confirm("Go on?", abort=True, err=True)


def quiet_libraries() -> None:
    """Keep the libraries' bars and notes away from ours; errors and our own warnings still show."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # read when imported
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    for name in ("trl", "accelerate", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


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
    """What libraries print inside goes to stderr, so that stdout has the result alone."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


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

        with stdout_aside():
            yield report
