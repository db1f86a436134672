"""`treft attribute`: which tokens carry a behaviour, study by study."""

from __future__ import annotations

import typer

from treft.cli.attribute_patch import patch
from treft.cli.attribute_perturb import perturb
from treft.cli.attribute_signals import signals

app = typer.Typer(
    help="Find the tokens that carry a finetuned behaviour: perturb, patch, or compare drift.",
    no_args_is_help=True,
)
app.command()(perturb)
app.command()(patch)
app.command()(signals)
