"""`treft study`: the paper's claims, each tested by one command."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from treft.cli.options import Json
from treft.cli.output import EXIT_INTERRUPTED, emit, stdout_aside
from treft.errors import ConfigError

if TYPE_CHECKING:
    from treft.study.engine import Event, Outcome, Workers
    from treft.study.step import Plan
    from treft.study.store import Store

__all__ = ["app"]

EXIT_FAILED = 1

app = typer.Typer(
    help="Test the paper's claims: each is a study of steps that are computed once and kept.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(help="Of the study, from `treft study list`.")]
Organism = Annotated[
    list[Path] | None, typer.Option(help="Folder of an organism; repeatable. Default: ours.")
]
Seeds = Annotated[int, typer.Option(help="Finetuning seeds on each organism.", min=1)]
Split = Annotated[str, typer.Option(help="Question set: test, or validation.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="NAME=VALUE of the finetune's recipe; repeatable."),
]
StoreFolder = Annotated[Path, typer.Option("--store", help="Folder of results; shared, continued.")]

STORE = Path("treft-studies")


@app.command(name="list")
def list_studies(json: Json = False) -> None:
    """Names, the claims of the paper that they test, and what they cost."""
    from treft.study.catalogue import all_studies

    studies = all_studies()
    if json:
        found = [
            {
                "name": name,
                "source": study.claim.source,
                "claim": study.claim.text,
                "cost": study.cost,
            }
            for name, study in studies.items()
        ]
        emit({"command": "study list", "studies": found}, as_json=True)
        return
    for name, study in studies.items():
        typer.echo(f"{name}  {study.claim.source}. {study.claim.text}\n    {study.cost}")


@app.command()
def status(
    name: Name,
    organism: Organism = None,
    seeds: Seeds = 5,
    split: Split = "test",
    settings: Settings = None,
    store: StoreFolder = STORE,
    json: Json = False,
) -> None:
    """Which steps of a study stand in the store, and which a run would do."""
    from treft.study.engine import missing_steps

    plan = _plan(name, organism, seeds, split, settings)
    results = _store(store)
    missing = missing_steps(plan, results)
    steps: list[dict[str, Any]] = []
    for planned in plan.steps:
        record = results.record(planned.address)
        absent = "missing" if planned.address in missing else "not needed"
        steps.append(
            {
                "name": planned.step.name,
                "state": "stands" if record else absent,
                "seconds": record["seconds"] if record else None,
                "address": planned.address,
            }
        )
    if json:
        emit({"command": "study status", "study": name, "steps": steps}, as_json=True)
        return
    for step in steps:
        seconds = "" if step["seconds"] is None else f"{step['seconds']:.1f} s"
        typer.echo(f"{step['state']:<10}  {seconds:>9}  {step['address'][:12]}  {step['name']}")
    typer.echo(f"{len(missing)} of {len(plan.by_address)} steps are to do")


@app.command()
def run(
    name: Name,
    organism: Organism = None,
    seeds: Seeds = 5,
    split: Split = "test",
    settings: Settings = None,
    store: StoreFolder = STORE,
    workers: Annotated[
        int | None, typer.Option(help="Processes; default: one a core.", min=1)
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(help="Run on a Ray cluster: its address, auto, or local to start one."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="New folder for a copy of table, plot and verdict.")
    ] = None,
    json: Json = False,
) -> None:
    """Do what is missing of a study; show its table and verdict."""
    _quiet_workers()
    if output is not None and output.exists():
        raise ConfigError(f"{output} exists: choose another --output.")
    plan = _plan(name, organism, seeds, split, settings)
    results = _store(store)
    try:
        with stdout_aside():
            outcome = _run(plan, results, workers, ray)
    except KeyboardInterrupt:
        typer.echo("stopped: the same command goes on from here", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if not outcome.complete:
        _report_failure(outcome)
        raise typer.Exit(EXIT_FAILED)
    folder = results.path(plan.results[0].address)
    if output is not None:
        shutil.copytree(folder, output)
    _show(folder, output or folder, outcome, json)


def _plan(
    name: str,
    organism: list[Path] | None,
    seeds: int,
    split: Any,
    settings: list[str] | None,
) -> Plan:
    """All steps of a study, checked."""
    from treft.study.catalogue import find_study, plan_study
    from treft.study.protocol import StudyConfig

    config = StudyConfig(tuple(organism or ()), seeds, split, _parse_settings(settings or []))
    return plan_study(find_study(name), config)


def _parse_settings(given: list[str]) -> dict[str, str]:
    """Values stay words; who knows the settings reads them."""
    pairs = [text.partition("=") for text in given]
    for text, (name, found, _) in zip(given, pairs, strict=True):
        if not name or not found:
            raise ConfigError(f"--set {text}: write NAME=VALUE.")
    return {name: value for name, _, value in pairs}


def _store(folder: Path) -> Store:
    from treft.study.store import Store

    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder as --store.")
    return Store(folder.resolve())


def _run(plan: Plan, store: Store, num_workers: int | None, ray: str | None) -> Outcome:
    from treft.study.engine import run_plan

    return run_plan(plan, store, _workers(plan, num_workers, ray), _tell)


def _workers(plan: Plan, num_workers: int | None, ray: str | None) -> Workers:
    from treft.study.pool import LocalPool, visible_gpus

    if ray is not None:
        from treft.study.ray_cluster import RayCluster

        return RayCluster(ray, num_workers)
    needs_gpus = any(planned.step.resources.gpus for planned in plan.steps)
    gpus = visible_gpus() if needs_gpus else ()
    return LocalPool(num_workers or os.cpu_count() or 1, gpus)


def _tell(event: Event) -> None:
    """One line a start, an end, and a mishap, to stderr; a traceback's last line is enough here."""
    detail = event.detail.strip().rpartition("\n")[2]
    ending = f": {detail}" if detail else ""
    counted = f"[{event.num_done}/{event.num_steps}]"
    typer.echo(f"{counted} {event.kind} {event.name}{ending}", err=True)


def _report_failure(outcome: Outcome) -> None:
    for name, error in outcome.failed.items():
        typer.echo(f"step {name} failed:\n{error}", err=True)
    typer.echo(
        f"{len(outcome.failed)} steps failed and {len(outcome.waiting)} wait for them; "
        f"{len(outcome.done)} were done and are kept. Mend the cause and run the same command.",
        err=True,
    )


def _show(folder: Path, shown_folder: Path, outcome: Outcome, as_json: bool) -> None:
    """Verdict and table of a study whose results stand."""
    import json as json_module

    result = json_module.loads((folder / "result.json").read_text("utf-8"))
    if as_json:
        counts = {"num_done": len(outcome.done), "num_stood": len(outcome.stood)}
        shown = {"command": "study run", **result, **counts, "output": str(shown_folder)}
        emit(shown, as_json=True)
        return
    from rich.console import Console
    from rich.table import Table

    columns = ("method", "measure", "value", "low", "high", "paper")
    claim = result["claim"]
    table = Table(
        title=f"{claim['source']} on the organism, percent, 95 % intervals",
        caption=f"paper: {claim['setting']}",
    )
    for column in columns:
        table.add_column(column)
    for row in result["table"]:
        table.add_row(*(_cell(row[column]) for column in columns))
    console = Console()
    console.print(table)
    console.print(result["verdict"])
    console.print(f"Table, plot and what they come from: {shown_folder}")


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _quiet_workers() -> None:
    """Libraries' bars and notes stay away from the lines of progress; workers inherit this."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
