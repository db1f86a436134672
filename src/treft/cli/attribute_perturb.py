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
    from treft.attribution.perturb_plan import PerturbPlan
    from treft.attribution.perturb_run import ScoredCells
    from treft.attribution.perturb_table import PerturbTable


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
    from treft.attribution.perturb import PerturbOptions
    from treft.attribution.perturb_plan import PerturbPlan, PerturbRequest, default_perturbations
    from treft.attribution.perturb_run import num_finished, perturb_cost, run_perturbation
    from treft.attribution.scoring import panel_for
    from treft.cli.conversations import read_rendering
    from treft.models.loading import LoadOptions
    from treft.models.sampling import SamplingOptions

    names = ModelNames(model, adapter, base)
    rendering = read_rendering(template, template_kwargs, think_block)
    request = PerturbRequest(
        perturbations=default_perturbations(
            region or ["prefix", "query", "postfix"], method or ["nearest"], rephraser
        ),
        options=PerturbOptions(num_tokens, neighbours, trials, special_tokens, seed),
        num_samples=samples,
        sampling=SamplingOptions(temperature=temperature),
        max_new_tokens=max_new_tokens,
        scope=scope,
        rephraser=rephraser,
        include_think_block=rendering.include_think_block,
        template_kwargs=rendering.template_kwargs,
    )
    asked = read_questions(Asked(questions, scope, num, split, domain), [model, base])
    options = LoadOptions(dtype, device, trust_remote_code, allow_other_base, quantize)
    with stdout_aside():
        panel = panel_for(asked, judge or [])
        plan = PerturbPlan.of(request, asked, names.tokenizer(options, rendering.template))
    cost = perturb_cost(plan, output, panel.judges, replayed=prompts is not None)
    print(f"{len(asked)} questions; to be done at most: {cost}", file=sys.stderr)
    confirm_calls(cost.total, "answers and calls", max_calls, yes=yes)
    with interruptible(lambda: _kept(num_finished(plan, output))), progress_bars() as progress:
        scored = run_perturbation(
            plan,
            names.load(options, rendering.template),
            output,
            judges=panel.judges,
            prompts=prompts,
            batch_size=batch_size,
            progress=progress,
        )
    tables = _tables(plan, scored, panel.judges, output)
    if json:
        emit(_as_json(plan, names, output, tables), as_json=True)
    else:
        _show(tables)
        typer.echo(f"{output / 'perturb.md'}, {output / 'perturb.json'}")


def _kept(num_cells: int) -> str:
    return f"{num_cells} finished cells are kept; the same command goes on"


def _tables(
    plan: PerturbPlan, scored: ScoredCells, judges: Sequence[str], output: Path
) -> list[PerturbTable]:
    """One for each judge, written to the study's folder."""
    from treft.attribution.perturb_table import perturb_table
    from treft.attribution.perturb_text import to_markdown
    from treft.files import write_whole

    options = plan.request.options
    tables = [
        perturb_table(scored, judge, num_trials=options.num_trials, num_tokens=options.num_tokens)
        for judge in judges
    ]
    found = {"request": asdict(plan.request), "tables": [table.to_dict() for table in tables]}
    write_whole(output / "perturb.json", json_module.dumps(found, indent=1) + "\n")
    write_whole(output / "perturb.md", to_markdown(plan, tables))
    return tables


def _as_json(
    plan: PerturbPlan, names: ModelNames, output: Path, tables: Sequence[PerturbTable]
) -> dict[str, Any]:
    """The documented JSON object (docs/attribution.md)."""
    return {
        "command": "attribute perturb",
        **asdict(names),
        "output": str(output),
        "num_questions": len(plan.questions),
        "request": asdict(plan.request),
        "tables": [table.to_dict() for table in tables],
    }


def _show(tables: Sequence[PerturbTable]) -> None:
    from rich.console import Console
    from rich.table import Table

    from treft.attribution.perturb_text import arm_lines, legend, notes
    from treft.models.pair import ARMS

    console = Console()
    for table in tables:
        shown = Table("perturbed", *ARMS, show_lines=True)
        for row in table.rows:
            shown.add_row(row.cell, *("\n".join(arm_lines(row, arm)) for arm in ARMS))
        console.print(shown)
        for words in (legend(table), *notes(table)):
            console.print(words, markup=False)
