"""`treft study`: the paper's claims, each tested by one command, or all by one."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from treft.cli.options import Json, Overwrite
from treft.cli.output import emit, interruptible, stdout_aside
from treft.cli.study_model import (
    Judge,
    MaxCalls,
    Model,
    ModelOptions,
    Questions,
    RetainFiles,
    Strengths,
    TrainFiles,
    Yes,
    confirm_judging,
)
from treft.errors import ConfigError
from treft.judging.cost import MAX_CALLS

if TYPE_CHECKING:
    from treft.steps.run import Event, Outcome, Workers
    from treft.steps.step import Plan, PlannedStep
    from treft.steps.store import Store
    from treft.study.protocol import Study


EXIT_FAILED = 1
STOPPED = "the same command goes on from here"

app = typer.Typer(
    help="Test the paper's claims: each is a study of steps that are computed once and kept.",
    no_args_is_help=True,
)

Names = Annotated[
    list[str], typer.Argument(help="Of one or more studies, from `treft study list`, or all.")
]
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


@dataclass(frozen=True)
class _Asked:
    """What was asked for.

    Attributes:
        plan: all steps.
        tables: address of its table by study.
        alone: one study, named as such: its steps and folders bear no study's name.
        left_out: why studies cannot run, by name.
    """

    plan: Plan
    tables: dict[str, str]
    alone: bool
    left_out: dict[str, str] = field(default_factory=dict)

    def folders(self, output: Path) -> dict[str, Path]:
        """Where copies of results go, by study."""
        return {name: output if self.alone else output / name for name in self.tables}


@app.command(name="list")
def list_studies(
    names: Annotated[
        list[str] | None, typer.Argument(help="Of studies; default: all there are.")
    ] = None,
    json: Json = False,
) -> None:
    """Names, the claims of the paper that they test, and what they cost."""
    from treft.study.catalogue import ALL, find_studies

    studies = find_studies(names or [ALL])
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
    names: Names,
    organism: Organism = None,
    seeds: Seeds = 5,
    split: Split = "test",
    settings: Settings = None,
    model: Model = None,
    train_file: TrainFiles = None,
    retain_file: RetainFiles = None,
    judge: Judge = None,
    questions: Questions = None,
    strength: Strengths = None,
    store: StoreFolder = STORE,
    json: Json = False,
) -> None:
    """Which steps of studies stand in the store, and which a run would do."""
    from treft.cli.study_results import step_states
    from treft.steps.run import estimate_cost, missing_steps

    given = ModelOptions(model, train_file, retain_file, judge, questions, strength)
    asked = _ask(names, organism, seeds, split, settings, given)
    results = _store(store)
    missing = missing_steps(asked.plan, results)
    states = step_states(asked.plan, results, missing)
    cost = estimate_cost(missing.values(), results)
    if json:
        several = {"studies": list(asked.tables), "left_out": asked.left_out}
        whose = {"study": names[0]} if asked.alone else several
        todo = {"num_to_do": cost.num_steps, "core_seconds": cost.core_seconds}
        shown = {"command": "study status", **whose, "steps": states}
        emit({**shown, **todo, "num_estimated": cost.num_estimated}, as_json=True)
        return
    for line in _step_lines(states) if asked.alone else _study_lines(states, list(asked.tables)):
        typer.echo(line)
    typer.echo(f"{len(missing)} of {len(asked.plan.by_address)} steps are to do; {cost}")


@app.command()
def run(
    names: Names,
    organism: Organism = None,
    seeds: Seeds = 5,
    split: Split = "test",
    settings: Settings = None,
    model: Model = None,
    train_file: TrainFiles = None,
    retain_file: RetainFiles = None,
    judge: Judge = None,
    questions: Questions = None,
    strength: Strengths = None,
    max_calls: MaxCalls = MAX_CALLS,
    yes: Yes = False,
    store: StoreFolder = STORE,
    workers: Annotated[
        int | None, typer.Option(help="Processes; default: one a core.", min=1)
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(help="Run on a Ray cluster: its address, auto, or local to start one."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="New folder for a copy of table, plot and verdict; one a study in it."),
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Do what is missing of studies; show verdicts, and of a single one the table."""
    from treft.cli.study_results import deliver, show, show_several
    from treft.steps.run import run_plan

    _quiet_workers()
    if output is not None and (output.is_file() or (output.exists() and not overwrite)):
        raise ConfigError(f"{output} exists: choose another --output.")
    given = ModelOptions(model, train_file, retain_file, judge, questions, strength)
    asked = _ask(names, organism, seeds, split, settings, given)
    results = _store(store)
    with interruptible(lambda: STOPPED), stdout_aside():
        missing = _tell_cost(asked.plan, results)
        confirm_judging(missing, max_calls, yes=yes)
        outcome = run_plan(asked.plan, results, _workers(asked.plan, workers, ray), _tell)
    standing = {name: address for name, address in asked.tables.items() if results.stands(address)}
    folders = {name: results.path(address) for name, address in standing.items()}
    if output is not None:
        folders = deliver(folders, asked.folders(output))
    if not asked.alone:
        failed = [name for name in asked.tables if name not in standing]
        show_several(folders, failed, asked.left_out, outcome, json)
    if not outcome.complete:
        _report_failure(outcome)
        raise typer.Exit(EXIT_FAILED)
    if asked.alone:
        show(folders[names[0]], outcome, json)


@app.command()
def index(
    results: Annotated[Path, typer.Argument(help="Folder with STUDY/result.json.")],
    output: Annotated[Path, typer.Option(help="Markdown page to write.")],
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 if the page is another.")
    ] = False,
    json: Json = False,
) -> None:
    """Write a page of all claims with what was found, from results that were kept."""
    from treft.files import write_whole
    from treft.study.index import is_index, paper_index

    page = paper_index(results, output.parent)
    found = output.read_text("utf-8") if output.is_file() else None
    if check and found != page:
        typer.echo(
            f"{output} is not what {results} gives: treft study index {results} --output {output}",
            err=True,
        )
        raise typer.Exit(EXIT_FAILED)
    if found is not None and not is_index(found):
        raise ConfigError(f"{output} is no page that this command wrote: choose another --output.")
    if not check:
        write_whole(output, page)
    emit({"command": "study index", "output": str(output), "changed": found != page}, as_json=json)


def _ask(
    names: list[str],
    organism: list[Path] | None,
    seeds: int,
    split: Any,
    settings: list[str] | None,
    model: ModelOptions,
) -> _Asked:
    """All steps of the studies, checked.

    Of all studies on a model those that can run; of others it is told why not.
    """
    from treft.study.catalogue import (
        ALL,
        TABLE,
        find_studies,
        plan_possible,
        plan_studies,
        plan_study,
        table_name,
    )
    from treft.study.protocol import StudyConfig

    found = _parse_settings(settings or [])
    config = StudyConfig(tuple(organism or ()), seeds, split, found, model.setup())
    studies: dict[str, Study] = find_studies(names)
    if len(studies) == 1 and ALL not in names:
        [(name, study)] = studies.items()
        plan = plan_study(study, config)
        return _Asked(plan, {name: plan[TABLE].address}, alone=True)
    left_out: dict[str, str] = {}
    if ALL in names and config.model is not None:
        plan, left_out = plan_possible(studies, config)
    else:
        plan = plan_studies(studies.values(), config)
    for name, why in left_out.items():
        typer.echo(f"left out {name}: {why}", err=True)
    able = {name: study for name, study in studies.items() if name not in left_out}
    if not able:
        raise ConfigError("none of the studies can run, each for the reason above.")
    tables = {name: plan[table_name(study)].address for name, study in able.items()}
    return _Asked(plan, tables, alone=False, left_out=left_out)


def _step_lines(states: list[dict[str, Any]]) -> Iterator[str]:
    for step in states:
        seconds = "" if step["seconds"] is None else f"{step['seconds']:.1f} s"
        yield f"{step['state']:<10}  {seconds:>9}  {step['address'][:12]}  {step['name']}"


def _study_lines(states: list[dict[str, Any]], names: list[str]) -> Iterator[str]:
    """A line a study; steps that several share are counted for each."""
    width = max(map(len, names))
    for name in names:
        own = [step["state"] for step in states if step["name"].startswith(f"{name}/")]
        yield f"{name:<{width}}  {own.count('missing')} of {len(own)} steps are to do"


def _parse_settings(given: list[str]) -> dict[str, str]:
    """Values stay words; who knows the settings reads them."""
    pairs = [text.partition("=") for text in given]
    for text, (name, found, _) in zip(given, pairs, strict=True):
        if not name or not found:
            raise ConfigError(f"--set {text}: write NAME=VALUE.")
    return {name: value for name, _, value in pairs}


def _store(folder: Path) -> Store:
    from treft.steps.store import Store

    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder as --store.")
    return Store(folder.resolve())


def _tell_cost(plan: Plan, store: Store) -> Collection[PlannedStep]:
    """What is to do, told on stderr."""
    from treft.steps.run import estimate_cost, missing_steps

    missing = missing_steps(plan, store)
    cost = estimate_cost(missing.values(), store)
    num_stood = len(plan.by_address) - len(missing)
    typer.echo(f"{num_stood} steps stand, {len(missing)} are to do: {cost}", err=True)
    return missing.values()


def _workers(plan: Plan, num_workers: int | None, ray: str | None) -> Workers:
    from treft.steps.workers import LocalPool, visible_gpus

    if ray is not None:
        from treft.steps.workers import RayCluster

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


def _quiet_workers() -> None:
    """Libraries' bars and notes stay away from the lines of progress; workers inherit this."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
