"""`treft demo`: break a narrow finetune, repair it, prevent it, and show the scores."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import typer
from rich.console import Console

from treft.cli.options.studies import Demo
from treft.cli.output import EXIT_INTERRUPTED, emit, progress_bars
from treft.files import new_output, write_whole
from treft.study.demo import ARMS, DEFAULT_ARMS, DemoConfig, DemoResult, run_demo
from treft.study.demo_report import render_report
from treft.study.figures import MEASURES
from treft.study.protocol import StudyConfig
from treft.table import Cell, Table

RECIPE = (
    "domain",
    "max_steps",
    "learning_rate",
    "kv_weight",
    "temperature",
    "num_general",
    "num_in_domain",
)
"""Options that change the finetune's recipe where they are given."""


def demo(options: Demo) -> None:
    """Run it, or go on with it, and show the scores."""
    given = {name: getattr(options, name) for name in RECIPE}
    settings = {name: value for name, value in given.items() if value is not None}
    split = cast(Any, options.split)  # checked there
    study = StudyConfig(tuple(options.organism), options.seeds, split, settings)
    output = options.output or new_output(Path("treft-demo"))
    config = DemoConfig(output, _arm_names(options.arms), study)
    try:
        with progress_bars() as progress:
            result = run_demo(config, progress)
    except KeyboardInterrupt:
        print(f"stopped; add --output {config.output} to go on from here", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    page = config.output / "report.html"
    write_whole(page, render_report(result))
    if options.json:
        emit(result.to_dict(), as_json=True)
    else:
        _print_table(result, page)


def _arm_names(text: str) -> tuple[str, ...]:
    """Parse `--arms`; unknown names are refused by DemoConfig."""
    if text in ("default", "all"):
        return DEFAULT_ARMS if text == "default" else tuple(ARMS)
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _print_table(result: DemoResult, page: Path) -> None:
    def cell(score: dict[str, float]) -> Cell:
        interval = f"[{score['low']:.1f}, {score['high']:.1f}]"
        return Cell(f"{score['mean']:.1f}", (interval,), is_number=True)

    table = Table.of(
        ("arm", "general ↑", "in-domain ↓", "EM-F1 ↑", "what it is"),
        (
            (name, *(cell(arm[measure]) for measure in MEASURES), ARMS[name].text)
            for name, arm in result.arms.items()
        ),
        title="percent, with 95 % intervals",
        caption=result.intervals,
    )
    console = Console()
    table.show(console)
    console.print(
        "A tiny embedded organism, not the paper's models. "
        f"Report with answers side by side: {page}"
    )
