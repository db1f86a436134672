"""`treft attribute patch` and `perturb`: one part of the prompt is changed at a time.

The cost is said first; then both models answer every cell, and tables are written and shown.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, cast

from rich.console import Console

from treft.attribution.grid import Grid
from treft.attribution.grid_run import Answered, run_grid
from treft.attribution.options import (
    GridRequest,
    PatchOptions,
    PerturbOptions,
    default_perturbations,
)
from treft.attribution.scoring import panel_for
from treft.attribution.tables import (
    patch_table,
    patches_in_words,
    perturb_table,
    perturbations_in_words,
    to_markdown,
)
from treft.cli.options.attribution import GridCommand, Patch, Perturb
from treft.cli.output import emit, interruptible, progress_bars, stdout_aside
from treft.cli.pairs import how, load_pair, read_questions, tokenizer_of
from treft.files import as_json, write_whole
from treft.table import Table


def patch(options: Patch) -> None:
    """Answer under each patch."""
    groups: Any = tuple(dict.fromkeys(("regions", *options.specs)))  # checked there
    changes = PatchOptions(
        groups=groups,
        regions=cast(Any, options.regions),
        window_width=options.window_width,
        window_stride=options.window_stride,
        band_width=options.band_width,
    )
    grid = _grid(options, changes)
    cost, patches = grid.cost(options.output), grid.patches
    said = f"{len(grid.questions)} questions, {len(patches)} patches; at most: {cost}"
    print(said, file=sys.stderr)
    if options.dry_run and options.json:
        names = [patch.name for patch in patches]
        plan = {"patches": names, "cost": asdict(cost)}
        emit({**_result("patch", options, grid, []), **plan}, as_json=True)
    elif options.dry_run:
        for one in patches:
            print(f"{one.name}{' (control)' * one.is_control}")
    else:
        options.limit.confirm(cost.total, "answers and calls")
        kept = "{} finished patches are kept; the same command goes on"
        found = _answered(options, grid, kept, lambda told: run_grid(grid, options.output, **told))
        tables = [patch_table(found, grid.cells, judge) for judge in grid.panel.judges]
        _deliver("patch", options, grid, tables, patches_in_words)


def perturb(options: Perturb) -> None:
    """Answer with each region perturbed."""
    perturbations = default_perturbations(
        options.regions, options.method or ("nearest",), options.rephraser
    )
    changes = PerturbOptions(
        perturbations,
        options.num_tokens,
        options.neighbours,
        options.trials,
        options.special_tokens,
        options.rephraser,
    )
    grid, prompts = _grid(options, changes), options.prompts
    cost = grid.cost(options.output, replayed=prompts is not None)
    print(f"{len(grid.questions)} questions; to be done at most: {cost}", file=sys.stderr)
    options.limit.confirm(cost.total, "answers and calls")
    kept = "{} finished cells are kept; the same command goes on"
    found = _answered(
        options, grid, kept, lambda told: run_grid(grid, options.output, prompts=prompts, **told)
    )
    tables = [perturb_table(found.scored, judge, changes) for judge in grid.panel.judges]
    _deliver("perturb", options, grid, tables, perturbations_in_words)


def _grid(options: GridCommand, changes: PatchOptions | PerturbOptions) -> Grid:
    """Returns all cells, checked; both models are loaded.

    Raises:
        TreftError: something asked for cannot be done.
    """
    models, drawn, questions = options.models, options.answers, options.questions
    rendering = how(options.rendering, drawn)
    request = GridRequest(rendering, drawn.samples, drawn.temperature, questions.scope)
    asked = read_questions(questions, questions.scope, questions.num)
    template = options.rendering.template_text()
    with stdout_aside():
        panel = panel_for(asked, drawn.judge)
        tokenizer = tokenizer_of(models, options.loading, template)
        pair = load_pair(models, options.loading, template)
        return Grid(changes, request, asked, tokenizer, pair, panel)


def _answered(
    options: GridCommand, grid: Grid, kept: str, run: Callable[[dict[str, Any]], Answered]
) -> Answered:
    """Returns what `run` returns; after Ctrl-C `kept` says how many cells are there."""

    def said() -> str:
        return kept.format(len(grid.cells) - len(grid.unanswered(options.output)))

    with interruptible(said), progress_bars() as progress:
        return run({"progress": progress})


def _deliver(
    name: str,
    options: GridCommand,
    grid: Grid,
    tables: Sequence[Any],
    in_words: Callable[[Any], Table],
) -> None:
    """Tables in the grid's folder, one for each judge, and on stdout."""
    about = {"request": grid.asked, "tables": as_json(tables)}
    paths = [options.output / f"{name}.{kind}" for kind in ("md", "json")]
    write_whole(paths[1], json.dumps(about, indent=1) + "\n")
    write_whole(paths[0], to_markdown(grid, map(in_words, tables)))
    if options.json:
        emit(_result(name, options, grid, tables), as_json=True)
        return
    console = Console()
    for table in tables:
        in_words(table).show(console)
    print(", ".join(map(str, paths)))


def _result(name: str, options: GridCommand, grid: Grid, tables: Sequence[Any]) -> dict[str, Any]:
    """Returns the documented JSON object (docs/attribution.md)."""
    return {
        "command": f"attribute {name}",
        **asdict(options.models),
        "output": str(options.output),
        "num_questions": len(grid.questions),
        "request": grid.asked,
        "tables": as_json(tables),
    }
