"""The `treft` command: all commands in one app, and what becomes of errors."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from treft import __version__
from treft.cli.commands import COMMANDS, GROUPS, run_sft
from treft.cli.dataclass_options import command_function
from treft.errors import TreftError

EXIT_USER_ERROR = 2

app = typer.Typer(
    help="Keep a narrow finetune narrow.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_groups = {name: typer.Typer(help=words, no_args_is_help=True) for name, words in GROUPS.items()}
for _name, _group in _groups.items():
    app.add_typer(_group, name=_name)
for _name, _command in COMMANDS.items():
    _first, _, _second = _name.rpartition(" ")
    _groups.get(_first, app).command(_second)(command_function(_command.options, _command))


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Keep a narrow finetune narrow."""
    if version:
        typer.echo(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


@app.command(
    context_settings={
        "ignore_unknown_options": True,
        "allow_extra_args": True,
        "help_option_names": [],
    },
    add_help_option=False,
    help="Finetune: all that `trl sft` takes, flags and YAML, plus kv_* (docs/training.md).",
)
def sft(context: typer.Context) -> None:
    """Hand all arguments to TRL's parser."""
    # TRL's own default sets off a warning of Transformers'.
    warnings.filterwarnings("ignore", category=FutureWarning)
    run_sft(list(context.args))


def main(argv: Sequence[str] | None = None) -> None:
    """Run `treft`; what the user can mend becomes one line on stderr, and so do warnings.

    Set TREFT_DEBUG=1 for the traceback of such an error.

    Args:
        argv: command-line arguments; by default those of the process.

    Raises:
        SystemExit: always: 0, 2 for something the user can mend, 130 after Ctrl-C.
    """
    arguments = None if argv is None else list(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = app(args=arguments, prog_name="treft", standalone_mode=False)
    except typer.Abort:
        print("stopped, as you said", file=sys.stderr)
        raise SystemExit(1) from None
    except (TreftError, typer.TyperException) as error:
        if os.environ.get("TREFT_DEBUG"):
            raise
        if message := _words(error):
            print(f"error: {message}", file=sys.stderr)
        raise SystemExit(EXIT_USER_ERROR) from None
    raise SystemExit(code or 0)


def _words(error: TreftError | typer.TyperException) -> str:
    """Returns one line; empty where the help page was shown instead."""
    if isinstance(error, TreftError):
        return str(error)
    return " ".join(error.format_message().split())


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Show warnings without the place in the code, which says nothing to a command's user."""
    print(f"warning: {message}", file=sys.stderr)
