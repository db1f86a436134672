"""`treft attribute patch`: the base's keys and values, part by part; does alignment return?"""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from treft.cli.attribute_models import Asked, ModelNames, need_inspect, read_questions
from treft.cli.attribute_options import (
    CHANGED,
    Base,
    Domain,
    Model,
    Num,
    Questions,
    Regions,
    Samples,
    Scope,
    Split,
)
from treft.cli.options import (
    MAX_CALLS,
    Adapter,
    AllowOtherBase,
    BatchSize,
    Device,
    DryRun,
    Dtype,
    Json,
    Judges,
    MaxCalls,
    MaxNewTokens,
    Quantize,
    Seed,
    Temperature,
    Template,
    TemplateKwargs,
    ThinkBlock,
    TrustRemoteCode,
    Yes,
)
from treft.cli.output import (
    confirm_calls,
    emit,
    interruptible,
    progress_bars,
    quiet_libraries,
    stdout_aside,
)

if TYPE_CHECKING:
    from treft.attribution.grid import Grid
    from treft.attribution.grid_request import Cost
    from treft.attribution.grid_run import Answered
    from treft.attribution.tables import PatchTable


def patch(
    model: Model,
    output: Annotated[Path, typer.Option(help="Folder for answers and table.")],
    adapter: Adapter = None,
    base: Base = None,
    questions: Questions = "em_general",
    scope: Scope = "general",
    num: Num = None,
    split: Split = "validation",
    domain: Domain = "finance",
    specs: Annotated[
        list[str] | None,
        typer.Option(
            help="regions (always), kinds, windows, layers or curve; repeatable.",
            rich_help_panel=CHANGED,
        ),
    ] = None,
    region: Regions = None,
    window_width: Annotated[
        int, typer.Option(help="Tokens of a window.", min=1, rich_help_panel=CHANGED)
    ] = 4,
    window_stride: Annotated[
        int | None,
        typer.Option(
            help="Tokens from a window to the next; default: its width.",
            min=1,
            rich_help_panel=CHANGED,
        ),
    ] = None,
    band_width: Annotated[
        int | None,
        typer.Option(
            help="Layers of a band; default: a quarter of all.", min=1, rich_help_panel=CHANGED
        ),
    ] = None,
    samples: Samples = 1,
    seed: Seed = 0,
    temperature: Temperature = 1.0,
    max_new_tokens: MaxNewTokens = 256,
    batch_size: BatchSize = 32,
    judge: Judges = None,
    template: Template = None,
    template_kwargs: TemplateKwargs = None,
    think_block: ThinkBlock = True,
    dtype: Dtype = "auto",
    device: Device = None,
    quantize: Quantize = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_other_base: AllowOtherBase = False,
    max_calls: MaxCalls = MAX_CALLS,
    yes: Yes = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Answer with the base's keys and values at one part of the prompt at a time.

    Where alignment returns, those tokens, layers or kinds carry the behaviour. A run that was
    killed goes on where it stopped when the same command is given again; specs may be added.
    """
    quiet_libraries()
    need_inspect()
    from treft.attribution.grid import Grid
    from treft.attribution.grid_request import GridRequest
    from treft.attribution.grid_run import run_grid
    from treft.attribution.patches import PatchOptions
    from treft.attribution.scoring import panel_for
    from treft.cli.conversations import read_rendering
    from treft.core.patch_spec import PATCHABLE
    from treft.models.loading import LoadOptions
    from treft.models.sampling import SamplingOptions

    names = ModelNames(model, adapter, base)
    rendering = read_rendering(template, template_kwargs, think_block)
    patches = PatchOptions(
        groups=tuple(dict.fromkeys(["regions", *(specs or ())])),  # type: ignore[arg-type]  # checked there
        regions=tuple(dict.fromkeys(region or PATCHABLE)),  # type: ignore[arg-type]  # checked there
        window_width=window_width,
        window_stride=window_stride,
        band_width=band_width,
    )
    request = GridRequest(
        num_samples=samples,
        seed=seed,
        sampling=SamplingOptions(temperature, max_new_tokens=max_new_tokens, batch_size=batch_size),
        scope=scope,
        include_think_block=rendering.include_think_block,
        template_kwargs=rendering.template_kwargs,
    )
    asked = read_questions(Asked(questions, scope, num, split, domain))
    options = LoadOptions(dtype, device, trust_remote_code, allow_other_base, quantize)
    with stdout_aside():
        panel = panel_for(asked, judge or [])
        tokenizer = names.tokenizer(options, rendering.template)
        pair = names.load(options, rendering.template)
        grid = Grid.of(patches, request, asked, tokenizer, pair, panel.judges)
    cost = grid.cost(output)
    print(f"{len(asked)} questions, {len(grid.patches)} patches; at most: {cost}", file=sys.stderr)
    if dry_run:
        _show_plan(grid, names, output, cost, as_json=json)
        return
    confirm_calls(cost.total, "answers and calls", max_calls, yes=yes)
    with interruptible(lambda: _kept(grid, output)), progress_bars() as progress:
        found = run_grid(grid, output, progress=progress)
    tables = _tables(grid, found, output)
    if json:
        emit(_as_json(grid, names, output, tables), as_json=True)
    else:
        _show(tables)
        typer.echo(f"{output / 'patch.md'}, {output / 'patch.json'}")


def _kept(grid: Grid, output: Path) -> str:
    kept = len(grid.cells) - len(grid.unanswered(output))
    return f"{kept} finished patches are kept; the same command goes on"


def _tables(grid: Grid, found: Answered, output: Path) -> list[PatchTable]:
    """One for each judge, written to the grid's folder."""
    from treft.attribution.table_words import patches_in_words, to_markdown
    from treft.attribution.tables import as_json, patch_table
    from treft.files import write_whole

    tables = [patch_table(found, grid.cells, judge) for judge in grid.judges]
    about = {"request": grid.asked, "tables": as_json(tables)}
    write_whole(output / "patch.json", json_module.dumps(about, indent=1) + "\n")
    write_whole(output / "patch.md", to_markdown(grid, map(patches_in_words, tables)))
    return tables


def _as_json(
    grid: Grid, names: ModelNames, output: Path, tables: Sequence[PatchTable]
) -> dict[str, Any]:
    """The documented JSON object (docs/attribution.md)."""
    from treft.attribution.tables import as_json

    return {
        "command": "attribute patch",
        **asdict(names),
        "output": str(output),
        "num_questions": len(grid.questions),
        "request": grid.asked,
        "tables": as_json(tables),
    }


def _show_plan(grid: Grid, names: ModelNames, output: Path, cost: Cost, *, as_json: bool) -> None:
    if as_json:
        found = _as_json(grid, names, output, [])
        patches = [patch.spec.name for patch in grid.patches]
        emit({**found, "patches": patches, "cost": asdict(cost)}, as_json=True)
        return
    for patch in grid.patches:
        typer.echo(f"{patch.spec.name}{' (control)' * patch.is_control}")


def _show(tables: Sequence[PatchTable]) -> None:
    from rich.console import Console

    from treft.attribution.table_words import patches_in_words

    console = Console()
    for table in tables:
        patches_in_words(table).show(console)
