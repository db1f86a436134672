"""Run a plan: each missing step, once its inputs stand, as many at a time as there is room for.

The store alone says what is done, so a run that was killed at any point goes on when it is started
again.
"""

from __future__ import annotations

import graphlib
import json
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal, Protocol

from treft.errors import ConfigError, DataError
from treft.files import data_digest
from treft.steps.step import Plan, PlannedStep, Work, version_of
from treft.steps.store import RECORD, Store

MAX_RETRIES = 2
"""Times that a step is started again after its worker died."""

Kind = Literal["started", "done", "stood", "died", "failed"]
Seconds = float | None
"""Time that a step took; None if another process had done it in the meantime."""


class Workers(Protocol):
    """Where steps run; both kinds are in `treft.steps.workers`."""

    def check(self, plan: Plan) -> None:
        """Refuse what can never run here."""

    def submit(self, planned: PlannedStep, store: Path) -> Future[Seconds] | None:
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


def missing_steps(plan: Plan, store: Store) -> dict[str, PlannedStep]:
    """Returns what must run for all results to stand, by address.

    A step whose result stands does not need its inputs any more.
    """
    everything = plan.by_address
    missing: set[str] = set()
    looked_at: set[str] = set()
    pending = [planned.address for planned in plan.results]
    while pending:
        address = pending.pop()
        if address in looked_at:
            continue
        looked_at.add(address)
        if not store.stands(address):
            missing.add(address)
            pending += everything[address].inputs.values()
    return {address: everything[address] for address in everything if address in missing}


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
        self.missing = missing_steps(plan, store)
        self.order = graphlib.TopologicalSorter(
            {
                address: [other for other in planned.inputs.values() if other in self.missing]
                for address, planned in self.missing.items()
            }
        )
        self.deaths: Counter[str] = Counter()
        self.running: dict[Future[Seconds], PlannedStep] = {}
        self.num_done = 0
        stood = [p.step.name for at, p in plan.by_address.items() if at not in self.missing]
        self.outcome = Outcome(stood=stood)

    def go(self) -> Outcome:
        """Go on until nothing runs and nothing can."""
        self.order.prepare()
        ready: deque[PlannedStep] = deque()
        while True:
            # what an end made possible goes first, so the first table is there long before the last
            ready.extendleft(self.missing[address] for address in reversed(self.order.get_ready()))
            while ready and self._start(ready[0]):
                ready.popleft()
            if not self.running:
                break
            finished, _ = wait(self.running, return_when=FIRST_COMPLETED)
            for future in finished:
                planned = self.running.pop(future)
                if self._must_start_again(planned, future):
                    ready.appendleft(planned)
        ended = {*self.outcome.done, *self.outcome.stood, *self.outcome.failed}
        names = [planned.step.name for planned in self.missing.values()]
        self.outcome.waiting = [name for name in names if name not in ended]
        return self.outcome

    def _start(self, planned: PlannedStep) -> bool:
        future = self.workers.submit(planned, self.store.folder)
        if future is None:
            return False
        self.running[future] = planned
        self._tell("started", planned)
        return True

    def _must_start_again(self, planned: PlannedStep, future: Future[Seconds]) -> bool:
        """Take note of a step's end."""
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            self.deaths[planned.address] += 1
            if self.deaths[planned.address] <= MAX_RETRIES:
                self._tell("died", planned, "its worker died; it starts again")
                return True
            error = RuntimeError(f"its worker died {MAX_RETRIES + 1} times; out of memory?")
        if error is not None:
            self.outcome.failed[planned.step.name] = str(error)
            self._tell("failed", planned, str(error))
            return False
        self.order.done(planned.address)
        self.num_done += 1
        seconds = future.result()
        if seconds is None:
            self.outcome.stood.append(planned.step.name)
            self._tell("stood", planned)
        else:
            self.outcome.done[planned.step.name] = seconds
            self._tell("done", planned, f"{seconds:.1f} s")
        return False

    def _tell(self, kind: Kind, planned: PlannedStep, detail: str = "") -> None:
        self.notify(Event(kind, planned.step.name, self.num_done, len(self.missing), detail))


def do_step(planned: PlannedStep, store: Path) -> Seconds:
    """Make a step's result in the store, unless it stands; what workers run.

    Raises:
        RuntimeError: The step failed; its text is the traceback. What a step raises itself may not
            travel from one process to another.
    """
    try:
        return _make(planned, Store(store))
    except (Exception, SystemExit):
        raise RuntimeError(traceback.format_exc()) from None


def _make(planned: PlannedStep, store: Store) -> Seconds:
    step = planned.step

    def fill(folder: Path) -> None:
        _check_unchanged(planned)
        for role, address in planned.inputs.items():
            if not store.stands(address):
                raise DataError(f"the input {role} is gone or damaged: {store.path(address)}.")
        inputs = {role: store.path(address) for role, address in planned.inputs.items()}
        step.function(Work(step.config, folder, inputs, step.data, step.seed or 0))

    return store.make(planned.address, {"name": step.name, **planned.record}, fill)


def _check_unchanged(planned: PlannedStep) -> None:
    """A result must not go under the address of other code or data than it was made with."""
    if version_of(planned.step.function) != planned.record["version"]:
        raise ConfigError(
            "the code here is not the code that the steps were planned with: it was edited since, "
            "or this machine has another version. Start the same command again."
        )
    for role, digest in planned.record["data"].items():
        if data_digest(planned.step.data[role]) != digest:
            raise DataError(f"{planned.step.data[role]} changed since the steps were planned.")


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
        shown = f"about {_duration(self.core_seconds)}"
        unknown = self.num_steps - self.num_estimated
        return f"{shown}, and {unknown} of kinds not kept yet" if unknown else shown


def estimate_cost(steps: Iterable[PlannedStep], store: Store) -> Cost:
    """Returns the core seconds of steps, each the median of kept ones with its function and config.

    Where none has the config (another method, another setting), those with the function count.
    """
    kept = _kept_seconds(store)
    num_steps, found = 0, []
    for planned in steps:
        num_steps += 1
        seconds = kept.get(_kind(planned.record)) or kept.get(planned.record["function"])
        if seconds:
            found.append(median(seconds) * planned.step.resources.cpus)
    return Cost(num_steps, len(found), round(sum(found), 1))


def _kept_seconds(store: Store) -> dict[str, list[float]]:
    """Seconds of all results, by function, and by function and config."""
    found: dict[str, list[float]] = {}
    for path in store.folder.glob(f"*/{RECORD}"):
        try:
            record = json.loads(path.read_text("utf-8"))
            kinds, seconds = (record["function"], _kind(record)), float(record["seconds"])
        except (OSError, ValueError, TypeError, KeyError):
            continue  # damaged, or cleared by another run
        for kind in kinds:
            found.setdefault(kind, []).append(seconds)
    return found


def _kind(record: Mapping[str, Any]) -> str:
    return f"{record['function']} {json.dumps(record['config'], sort_keys=True)}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} core seconds"
    if seconds < 7200:
        return f"{seconds / 60:.0f} core minutes"
    return f"{seconds / 3600:.1f} core hours"
