"""All commands in one app. Heavy imports happen inside the command that needs them."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from treft.cli.attribute import app as attribute_app
from treft.cli.audit import audit
from treft.cli.compare import compare
from treft.cli.data import app as data_app
from treft.cli.demo import demo
from treft.cli.diagnose import diagnose
from treft.cli.generate import generate
from treft.cli.judge import calibrate, judge
from treft.cli.organism import app as organism_app
from treft.cli.reference import app as reference_app
from treft.cli.regions import regions
from treft.cli.study import app as study_app
from treft.errors import TreftError, needs_extra

EXIT_USER_ERROR = 2

app = typer.Typer(
    help="Keep a narrow finetune narrow.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo)
app.command()(generate)
app.command()(regions)
app.command()(judge)
app.command()(calibrate)
app.command()(compare)
app.command()(audit)
app.command()(diagnose)
app.add_typer(reference_app, name="reference")
app.add_typer(organism_app, name="organism")
app.add_typer(attribute_app, name="attribute")
app.add_typer(study_app, name="study")
app.add_typer(data_app, name="data")


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Keep a narrow finetune narrow."""
    if version:
        from treft import __version__

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
    with needs_extra("train", "training needs"):
        from treft.cli.sft import main
    # TRL's own default sets off a warning of Transformers'.
    warnings.filterwarnings("ignore", category=FutureWarning)
    main(list(context.args))


def run(argv: Sequence[str] | None = None) -> None:
    """Run the app; what the user can mend becomes one line on stderr, and so do warnings.

    Set TREFT_DEBUG=1 for the traceback of such an error.

    Raises:
        SystemExit: always.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            app(args=None if argv is None else list(argv), prog_name="treft")
    except TreftError as error:
        if os.environ.get("TREFT_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(EXIT_USER_ERROR) from None


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Without the place in the code, which says nothing to the user of a command."""
    print(f"warning: {message}", file=sys.stderr)
