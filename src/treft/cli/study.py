"""`treft study run` and `status`: the paper's claims, on the organism or on a real model."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import typer

from treft.cli.options.groups import Limit
from treft.cli.options.studies import RealModel, Run, Status
from treft.cli.output import EXIT_FAILED, emit, interruptible, stdout_aside
from treft.cli.study_results import deliver, show, show_several, step_states
from treft.errors import ConfigError
from treft.steps import run as running
from treft.steps.run import Event, Outcome, Workers, estimate_cost, missing_steps
from treft.steps.step import Plan, Step
from treft.steps.store import Store
from treft.steps.workers import LocalPool, RayCluster, visible_gpus
from treft.study import catalogue
from treft.study.claims import ALL
from treft.study.model_setup import ModelSetup
from treft.study.protocol import StudyConfig
from treft.study.tables import TABLE

STOPPED = "the same command goes on from here"


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
        """Returns where copies of results go, by study."""
        return {name: output if self.alone else output / name for name in self.tables}


def status(options: Status) -> None:
    """Print what stands and what is to do."""
    asked = _ask(options)
    store = Store(options.store.resolve())
    missing = missing_steps(asked.plan, store)
    states = step_states(asked.plan, store, missing)
    cost = estimate_cost(missing.values(), store)
    if options.json:
        several = {"studies": list(asked.tables), "left_out": asked.left_out}
        whose = {"study": options.names[0]} if asked.alone else several
        todo = {"num_to_do": cost.num_steps, "core_seconds": cost.core_seconds}
        shown = {"command": "study status", **whose, "steps": states}
        emit({**shown, **todo, "num_estimated": cost.num_estimated}, as_json=True)
        return
    for line in _step_lines(states) if asked.alone else _study_lines(states, list(asked.tables)):
        print(line)
    print(f"{len(missing)} of {len(asked.plan.by_address)} steps are to do; {cost}")


def run(options: Run) -> None:
    """Do what is to do, and show what came out."""
    _quiet_workers()
    asked = _ask(options)
    store = Store(options.store.resolve())
    with interruptible(lambda: STOPPED), stdout_aside():
        missing = _tell_cost(asked.plan, store)
        confirm_judging(missing, options.limit)
        workers = _workers(asked.plan, options.workers, options.ray)
        outcome = running.run_plan(asked.plan, store, workers, _tell)
    standing = {name: address for name, address in asked.tables.items() if store.stands(address)}
    folders = {name: store.path(address) for name, address in standing.items()}
    if options.output is not None:
        folders = deliver(folders, asked.folders(options.output))
    if not asked.alone:
        failed = [name for name in asked.tables if name not in standing]
        show_several(folders, failed, asked.left_out, outcome, options.json)
    if not outcome.complete:
        _report_failure(outcome)
        raise typer.Exit(EXIT_FAILED)
    if asked.alone:
        show(folders[options.names[0]], outcome, options.json)


def _ask(options: Status) -> _Asked:
    """Returns all steps of the studies, checked.

    Of all studies on a model those that can run; of others it is told why not.
    """
    settings = _parse_settings(options.settings)
    model = model_setup(options.real_model)
    split = cast(Any, options.split)  # checked there
    config = StudyConfig(options.organism, options.seeds, split, settings, model)
    studies = catalogue.find_studies(options.names)
    takes_all = ALL in options.names
    if len(studies) == 1 and not takes_all:
        [(name, study)] = studies.items()
        plan = catalogue.plan_study(study, config)
        return _Asked(plan, {name: plan[TABLE].address}, alone=True)
    left_out: dict[str, str] = {}
    if takes_all and config.model is not None:
        plan, left_out = catalogue.plan_possible(studies, config)
    else:
        plan = catalogue.plan_studies(studies.values(), config)
    for name, why in left_out.items():
        print(f"left out {name}: {why}", file=sys.stderr)
    able = {name: study for name, study in studies.items() if name not in left_out}
    if not able:
        raise ConfigError("none of the studies can run, each for the reason above.")
    tables = {name: plan[catalogue.table_name(study)].address for name, study in able.items()}
    return _Asked(plan, tables, alone=False, left_out=left_out)


def _step_lines(states: list[dict[str, Any]]) -> Iterator[str]:
    for step in states:
        seconds = "" if step["seconds"] is None else f"{step['seconds']:.1f} s"
        yield f"{step['state']:<10}  {seconds:>9}  {step['address'][:12]}  {step['name']}"


def _study_lines(states: list[dict[str, Any]], names: list[str]) -> Iterator[str]:
    """Yields a line a study; steps that several share are counted for each."""
    width = max(map(len, names))
    for name in names:
        own = [step["state"] for step in states if step["name"].startswith(f"{name}/")]
        yield f"{name:<{width}}  {own.count('missing')} of {len(own)} steps are to do"


def _parse_settings(given: Iterable[str]) -> dict[str, str]:
    """Values stay words; who knows the settings reads them."""
    pairs = [text.partition("=") for text in given]
    for text, (name, found, _) in zip(given, pairs, strict=True):
        if not name or not found:
            raise ConfigError(f"--set {text}: write NAME=VALUE.")
    return {name: value for name, _, value in pairs}


def _tell_cost(plan: Plan, store: Store) -> Collection[Step[Any]]:
    """Returns what is to do, told on stderr."""
    missing = missing_steps(plan, store)
    cost = estimate_cost(missing.values(), store)
    num_stood = len(plan.by_address) - len(missing)
    print(f"{num_stood} steps stand, {len(missing)} are to do: {cost}", file=sys.stderr)
    return missing.values()


def _workers(plan: Plan, num_workers: int | None, ray: str | None) -> Workers:
    if ray is not None:
        return RayCluster(ray, num_workers)
    needs_gpus = any(step.resources.gpus for step in plan.named.values())
    gpus = visible_gpus() if needs_gpus else ()
    return LocalPool(num_workers or os.cpu_count() or 1, gpus)


def _tell(event: Event) -> None:
    """Print a line a start, an end and a mishap to stderr; of a traceback its last line."""
    detail = event.detail.strip().rpartition("\n")[2]
    ending = f": {detail}" if detail else ""
    counted = f"[{event.num_done}/{event.num_steps}]"
    print(f"{counted} {event.kind} {event.name}{ending}", file=sys.stderr)


def _report_failure(outcome: Outcome) -> None:
    for name, error in outcome.failed.items():
        print(f"step {name} failed:\n{error}", file=sys.stderr)
    print(
        f"{len(outcome.failed)} steps failed and {len(outcome.waiting)} wait for them; "
        f"{len(outcome.done)} were done and are kept. Mend the cause and run the same command.",
        file=sys.stderr,
    )


def _quiet_workers() -> None:
    """Libraries' bars and notes stay away from the lines of progress; workers inherit this."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")


def model_setup(options: RealModel) -> ModelSetup | None:
    """Returns the model with its files; None where none is named.

    Raises:
        ConfigError: an option is malformed, or names what is not there.
    """
    if options.model is None:
        return None
    named = {"questions": options.questions} if options.questions else {}
    return ModelSetup(
        options.model,
        options.judge or "",
        _files("--train-file", options.train_file),
        _files("--retain-file", options.retain_file),
        strengths=_numbers(options.strength),
        **named,
    )


def confirm_judging(steps: Iterable[Step[Any]], limit: Limit) -> None:
    """Say how often judges will be asked, and above a limit ask whether to go on.

    Raises:
        ConfigError: above the limit, and nobody is there to answer.
    """
    num_calls = sum(step.resources.num_calls for step in steps)
    if num_calls:
        print(f"at most {num_calls:,} judge calls; none is paid twice", file=sys.stderr)
    limit.confirm(num_calls, "judge calls")


def _files(option: str, given: Iterable[str]) -> dict[str, Path]:
    return {name: Path(path) for name, path in _pairs(option, given, "DOMAIN=FILE").items()}


def _numbers(given: Iterable[str]) -> dict[str, float]:
    found = {}
    for name, value in _pairs("--strength", given, "METHOD=NUMBER").items():
        try:
            found[name] = float(value)
        except ValueError:
            raise ConfigError(f"--strength {name}={value}: {value} is no number.") from None
    return found


def _pairs(option: str, given: Iterable[str], form: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        name, _, value = text.partition("=")
        if not name or not value:
            raise ConfigError(f"{option} {text}: write {form}.")
        if name in found:
            raise ConfigError(f"{option} names {name} twice.")
        found[name] = value
    return found
