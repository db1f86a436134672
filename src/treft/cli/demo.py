"""`treft demo`: break a narrow finetune, repair it, prevent it, and show the scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from treft.cli.output import emit, progress_bars, quiet_libraries

if TYPE_CHECKING:
    from treft.study.demo import DemoResult
    from treft.study.demo_arms import ArmName


def demo(
    seeds: Annotated[int, typer.Option(help="Finetuning seeds on each organism.")] = 1,
    arms: Annotated[str, typer.Option(help="Comma-separated arms, or `all`.")] = "default",
    organism: Annotated[
        list[Path] | None, typer.Option(help="Folder of an organism; repeatable. Default: ours.")
    ] = None,
    split: Annotated[str, typer.Option(help="Question set: test, or validation.")] = "test",
    output: Annotated[
        Path | None, typer.Option(help="Folder of results; one that exists is continued.")
    ] = None,
    domain: Annotated[str | None, typer.Option(help="Narrow domain of the finetune.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps of each arm.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of each arm.")] = None,
    kv_weight: Annotated[float | None, typer.Option(help="λ of the TReFT arms.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the sampled answers.")] = None,
    num_general: Annotated[int | None, typer.Option(help="General questions.")] = None,
    num_in_domain: Annotated[int | None, typer.Option(help="In-domain questions.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """See a narrow finetune go broadly wrong, the base's prefix repair it, and TReFT prevent it.

    Runs on the embedded model organism, offline, in about three minutes a seed on two cores.
    """
    quiet_libraries()
    from treft.files import new_output, write_whole
    from treft.organism import FinetuneRecipe
    from treft.study.demo import DemoConfig, run_demo

    overrides: dict[str, Any] = {
        "domain": domain,
        "max_steps": max_steps,
        "learning_rate": learning_rate,
        "kv_weight": kv_weight,
        "temperature": temperature,
        "num_general": num_general,
        "num_in_domain": num_in_domain,
    }
    given = {k: v for k, v in overrides.items() if v is not None}
    recipe = FinetuneRecipe(**given)
    split_name: Any = split
    config = DemoConfig(
        output=output or new_output(Path("treft-demo")),
        organisms=tuple(organism or ()),
        num_seeds=seeds,
        arms=_arm_names(arms),
        split=split_name,
        recipe=recipe,
    )
    try:
        with progress_bars() as progress:
            result = run_demo(config, progress)
    except KeyboardInterrupt:
        typer.echo(f"stopped; add --output {config.output} to go on from here", err=True)
        raise typer.Exit(130) from None
    page = config.output / "report.html"
    from treft.study.demo_report import render_report

    write_whole(page, render_report(result))
    if json:
        emit(result.to_dict(), as_json=True)
    else:
        _print_table(result, page)


def _arm_names(text: str) -> tuple[ArmName, ...]:
    """Parse `--arms`; unknown names are refused by DemoConfig."""
    from treft.study.demo_arms import ALL_ARMS, DEFAULT_ARMS

    if text in ("default", "all"):
        return DEFAULT_ARMS if text == "default" else ALL_ARMS
    return tuple(cast("ArmName", name.strip()) for name in text.split(",") if name.strip())


def _print_table(result: DemoResult, page: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from treft.study.demo import interval_kind
    from treft.study.demo_arms import DESCRIPTIONS

    table = Table(title="percent, with 95 % intervals", caption=interval_kind(result))
    for heading in ("arm", "general ↑", "in-domain ↓", "EM-F1 ↑", "what it is"):
        table.add_column(heading)
    for arm, summary in result.arms.items():
        figures = (
            f"{score.mean:.1f} [{score.low:.1f}, {score.high:.1f}]"
            for score in (summary.general, summary.in_domain, summary.em_f1)
        )
        table.add_row(arm, *figures, DESCRIPTIONS[arm])
    console = Console()
    console.print(table)
    console.print(
        "A tiny embedded organism, not the paper's models. "
        f"Report with answers side by side: {page}"
    )
