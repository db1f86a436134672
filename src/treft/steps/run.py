"""Run a plan: each missing step, once its inputs stand, as many at a time as there is room for.

The store alone says what is done, so a run that was killed at any point goes on when it is started
again.
"""

from __future__ import annotations

import graphlib
import json
import traceback
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal, Protocol

from treft.errors import ConfigError, DataError
from treft.files import data_digest
from treft.steps.step import Plan, Step, Work, version_of
from treft.steps.store import Store

MAX_RETRIES = 2
"""Times that a step is started again after its worker died."""

Kind = Literal["started", "done", "stood", "died", "failed"]
Seconds = float | None
"""Time that a step took; None if another process had done it in the meantime."""


class Workers(Protocol):
    """Where steps run; both kinds are in `treft.steps.workers`."""

    def check(self, plan: Plan) -> None:
        """Refuse what can never run here."""

    def submit(self, step: Step[Any], store: Path) -> Future[Seconds] | None:
        """Start `do_step`; None while there is no room."""

    def close(self) -> None:
        """End all that is running."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a step.

    Attributes:
        kind: What happened.
        name: Of the step.
        num_done: Missing steps done so far.
        num_steps: Number of steps that were missing at the start.
        detail: Seconds in words, or the traceback.
    """

    kind: Kind
    name: str
    num_done: int
    num_steps: int
    detail: str = ""


@dataclass
class Outcome:
    """What a run did, by name of the step.

    Attributes:
        done: Seconds of each step that was done.
        stood: What was there before, or was done by another run meanwhile.
        failed: Traceback of each step that failed.
        waiting: Steps that could not run because of those.
    """

    done: dict[str, float] = field(default_factory=dict)
    stood: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether all results stand."""
        return not self.failed and not self.waiting


def missing_steps(plan: Plan, store: Store) -> dict[str, Step[Any]]:
    """Returns what must run for all results to stand, by address.

    A step whose result stands does not need its inputs any more.
    """
    missing: set[str] = set()
    looked_at: set[str] = set()
    pending = list(plan.results.values())
    while pending:
        step = pending.pop()
        if step.address in looked_at:
            continue
        looked_at.add(step.address)
        if not store.stands(step.address):
            missing.add(step.address)
            pending += step.needs.values()
    return {address: plan[name] for address, name in plan.by_address.items() if address in missing}


def run_plan(
    plan: Plan, store: Store, workers: Workers, notify: Callable[[Event], None]
) -> Outcome:
    """Do what is missing. A failed step stops only the steps that need it.

    Args:
        plan: All steps.
        store: Holds results of former runs; continued.
        workers: Where steps run; closed at the end, also after Ctrl-C.
        notify: Is told of each event.

    Raises:
        ConfigError: A step can never run on these workers.
    """
    try:
        workers.check(plan)
        return _Run(plan, store, workers, notify).go()
    finally:
        workers.close()


class _Run:
    """The state of one run."""

    def __init__(
        self, plan: Plan, store: Store, workers: Workers, notify: Callable[[Event], None]
    ) -> None:
        self.store = store
        self.workers = workers
        self.notify = notify
        self.names = plan.by_address
        self.missing = missing_steps(plan, store)
        self.order = graphlib.TopologicalSorter(
            {
                address: [n.address for n in step.needs.values() if n.address in self.missing]
                for address, step in self.missing.items()
            }
        )
        self.deaths: Counter[str] = Counter()
        self.num_done = 0
        self.outcome = Outcome(stood=[n for at, n in self.names.items() if at not in self.missing])

    def go(self) -> Outcome:
        """Go on until nothing runs and nothing can."""
        self.order.prepare()
        ready: deque[Step[Any]] = deque()
        running: dict[Future[Seconds], Step[Any]] = {}
        while True:
            # what an end made possible goes first, so the first table is there long before the last
            ready.extendleft(self.missing[address] for address in reversed(self.order.get_ready()))
            while ready:
                future = self.workers.submit(ready[0], self.store.folder)
                if future is None:
                    break
                running[future] = ready.popleft()
                self._tell("started", running[future])
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                step = running.pop(future)
                if self._must_start_again(step, future):
                    ready.appendleft(step)
        ended = {*self.outcome.done, *self.outcome.stood, *self.outcome.failed}
        names = [self.names[address] for address in self.missing]
        self.outcome.waiting = [name for name in names if name not in ended]
        return self.outcome

    def _must_start_again(self, step: Step[Any], future: Future[Seconds]) -> bool:
        """Take note of a step's end."""
        name, error = self.names[step.address], future.exception()
        if isinstance(error, BrokenProcessPool):
            self.deaths[name] += 1
            if self.deaths[name] <= MAX_RETRIES:
                self._tell("died", step, "its worker died; it starts again")
                return True
            error = RuntimeError(f"its worker died {MAX_RETRIES + 1} times; out of memory?")
        if error is not None:
            self.outcome.failed[name] = str(error)
            self._tell("failed", step, str(error))
            return False
        self.order.done(step.address)
        self.num_done += 1
        seconds = future.result()
        if seconds is None:
            self.outcome.stood.append(name)
            self._tell("stood", step)
        else:
            self.outcome.done[name] = seconds
            self._tell("done", step, f"{seconds:.1f} s")
        return False

    def _tell(self, kind: Kind, step: Step[Any], detail: str = "") -> None:
        name = self.names[step.address]
        self.notify(Event(kind, name, self.num_done, len(self.missing), detail))


def do_step(step: Step[Any], store: Path) -> Seconds:
    """Make a step's result in the store, unless it stands; what workers run.

    Raises:
        RuntimeError: The step failed; its text is the traceback. What a step raises itself may not
            travel from one process to another.
    """
    kept = Store(store)
    inputs = {role: kept.path(need.address) for role, need in step.needs.items()}

    def fill(folder: Path) -> None:
        _check(step, kept)
        step.function(Work(step.config, folder, {**step.data, **inputs}, step.seed or 0))

    try:
        return kept.make(step.address, {"name": step.name, **step.record}, fill)
    except (Exception, SystemExit):
        raise RuntimeError(traceback.format_exc()) from None


def _check(step: Step[Any], store: Store) -> None:
    """A result must not go under the address of other code or data than it was made with.

    The record was made when the step was planned, and travelled with it.
    """
    if version_of(step.function) != step.record["version"]:
        raise ConfigError(
            "the code here is not the code that the steps were planned with: it was edited since, "
            "or this machine has another version. Start the same command again."
        )
    for role, digest in step.record["data"].items():
        if data_digest(step.data[role]) != digest:
            raise DataError(f"{step.data[role]} changed since the steps were planned.")
    for role, need in step.needs.items():
        if not store.stands(need.address):
            found = store.path(need.address)
            raise DataError(f"the input {role} is gone or damaged: {found}.")


@dataclass(frozen=True)
class Cost:
    """What steps that are to do will take.

    Attributes:
        num_steps: How many there are.
        num_estimated: Of these, how many are like a step that was done before.
        core_seconds: Of those, by the clock times cores, together.
    """

    num_steps: int
    num_estimated: int
    core_seconds: float

    def __str__(self) -> str:
        """Returns it in words, such as `about 40 core minutes`."""
        if not self.num_steps:
            return "nothing to compute"
        if not self.num_estimated:
            return "time unknown: no such step is kept yet"
        seconds, unknown = self.core_seconds, self.num_steps - self.num_estimated
        shown = f"about {seconds:.0f} core seconds"
        if seconds >= 7200:
            shown = f"about {seconds / 3600:.1f} core hours"
        elif seconds >= 120:
            shown = f"about {seconds / 60:.0f} core minutes"
        return f"{shown}, and {unknown} of kinds not kept yet" if unknown else shown


def estimate_cost(steps: Collection[Step[Any]], store: Store) -> Cost:
    """Returns the core seconds of steps, each the median of kept ones with its function and config.

    Where none has the config (another method, another setting), those with the function count.
    """
    kept: dict[str, list[float]] = {}
    for record in store.records():
        for kind in _kinds(record):
            kept.setdefault(kind, []).append(record["seconds"])
    found = []
    for step in steps:
        seconds = next((kept[kind] for kind in _kinds(step.record) if kind in kept), None)
        if seconds is not None:
            found.append(median(seconds) * step.resources.cpus)
    return Cost(len(steps), len(found), round(sum(found), 1))


def _kinds(record: Mapping[str, Any]) -> tuple[str, str]:
    """What a step is like, from the closest on."""
    config = json.dumps(record["config"], sort_keys=True)
    return f"{record['function']} {config}", record["function"]
