"""`treft attribute perturb`: replace tokens region by region; does the behaviour go?"""

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
    from treft.attribution.grid_run import Answered
    from treft.attribution.tables import PerturbTable


def perturb(
    model: Model,
    output: Annotated[Path, typer.Option(help="Folder for prompts, answers and table.")],
    adapter: Adapter = None,
    base: Base = None,
    questions: Questions = "em_general",
    scope: Scope = "general",
    num: Num = None,
    split: Split = "validation",
    domain: Domain = "finance",
    region: Regions = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="nearest or random; repeatable; default: nearest.", rich_help_panel=CHANGED
        ),
    ] = None,
    rephraser: Annotated[
        str | None,
        typer.Option(
            help="Inspect model that says queries in other words; default: none.",
            rich_help_panel=CHANGED,
        ),
    ] = None,
    num_tokens: Annotated[
        int, typer.Option(help="Replaced in each prompt.", min=1, rich_help_panel=CHANGED)
    ] = 10,
    neighbours: Annotated[
        int, typer.Option(help="Of which one is drawn.", min=1, rich_help_panel=CHANGED)
    ] = 5,
    trials: Annotated[
        int, typer.Option(help="Versions of each prompt.", min=1, rich_help_panel=CHANGED)
    ] = 10,
    special_tokens: Annotated[
        bool,
        typer.Option(
            "--special-tokens",
            help="Special tokens may give way, too (none ever comes).",
            rich_help_panel=CHANGED,
        ),
    ] = False,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="prompts.jsonl of another study, to ask the same again.",
            rich_help_panel=CHANGED,
        ),
    ] = None,
    seed: Seed = 0,
    samples: Samples = 1,
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
    json: Json = False,
) -> None:
    """Replace tokens of one region at a time, and score the answers beside two controls.

    If answers are aligned again once a region is perturbed, its tokens carry the behaviour. A run
    that was killed goes on where it stopped when the same command is given again.
    """
    quiet_libraries()
    need_inspect()
    from treft.attribution.grid import Grid
    from treft.attribution.grid_request import GridRequest
    from treft.attribution.grid_run import run_grid
    from treft.attribution.perturb import PerturbOptions, default_perturbations
    from treft.attribution.scoring import panel_for
    from treft.cli.conversations import read_rendering
    from treft.models.loading import LoadOptions
    from treft.models.sampling import SamplingOptions

    names = ModelNames(model, adapter, base)
    rendering = read_rendering(template, template_kwargs, think_block)
    perturbations = default_perturbations(
        region or ["prefix", "query", "postfix"], method or ["nearest"], rephraser
    )
    changes = PerturbOptions(
        perturbations, num_tokens, neighbours, trials, special_tokens, rephraser
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
        grid = Grid.of(changes, request, asked, tokenizer, pair, panel.judges)
    cost = grid.cost(output, replayed=prompts is not None)
    print(f"{len(asked)} questions; to be done at most: {cost}", file=sys.stderr)
    confirm_calls(cost.total, "answers and calls", max_calls, yes=yes)
    with interruptible(lambda: _kept(grid, output)), progress_bars() as progress:
        found = run_grid(grid, output, prompts=prompts, progress=progress)
    tables = _tables(grid, found, output)
    if json:
        emit(_as_json(grid, names, output, tables), as_json=True)
    else:
        _show(tables)
        typer.echo(f"{output / 'perturb.md'}, {output / 'perturb.json'}")


def _kept(grid: Grid, output: Path) -> str:
    kept = len(grid.cells) - len(grid.unanswered(output))
    return f"{kept} finished cells are kept; the same command goes on"


def _tables(grid: Grid, found: Answered, output: Path) -> list[PerturbTable]:
    """One for each judge, written to the grid's folder."""
    from treft.attribution.table_words import perturbations_in_words, to_markdown
    from treft.attribution.tables import as_json, perturb_table
    from treft.files import write_whole

    assert grid.perturb is not None
    tables = [perturb_table(found.scored, judge, grid.perturb) for judge in grid.judges]
    about = {"request": grid.asked, "tables": as_json(tables)}
    write_whole(output / "perturb.json", json_module.dumps(about, indent=1) + "\n")
    write_whole(output / "perturb.md", to_markdown(grid, map(perturbations_in_words, tables)))
    return tables


def _as_json(
    grid: Grid, names: ModelNames, output: Path, tables: Sequence[PerturbTable]
) -> dict[str, Any]:
    """The documented JSON object (docs/attribution.md)."""
    from treft.attribution.tables import as_json

    return {
        "command": "attribute perturb",
        **asdict(names),
        "output": str(output),
        "num_questions": len(grid.questions),
        "request": grid.asked,
        "tables": as_json(tables),
    }


def _show(tables: Sequence[PerturbTable]) -> None:
    from rich.console import Console

    from treft.attribution.table_words import perturbations_in_words

    console = Console()
    for table in tables:
        perturbations_in_words(table).show(console)
