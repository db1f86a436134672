"""`treft organism`: rebuild the embedded model organism, or another one from another seed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from treft.cli.output import emit

__all__ = ["app"]

app = typer.Typer(help="Rebuild the embedded model organism from a seed.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `build` a named subcommand."""


@app.command()
def build(
    output: Annotated[Path, typer.Option(help="Folder to write; must not hold a model.")],
    seed: Annotated[int, typer.Option(help="Seed of the weights and of every row.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train an organism from scratch: about ten minutes on two cores; resumes when run again."""
    from dataclasses import asdict

    from treft.organism.build import BuildRecipe
    from treft.organism.build import build as build_organism

    recipe = BuildRecipe(seed=seed)
    build_organism(output, recipe)
    emit({"output": str(output), "recipe": asdict(recipe)}, as_json=json)
