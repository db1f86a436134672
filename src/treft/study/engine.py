"""Run a plan: each missing step, once its inputs stand, as many at a time as there is room for.

The store alone says what is done, so a run that was killed at any point goes on when it is started
again.
"""

from __future__ import annotations

import graphlib
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Literal, Protocol

from treft.study.step import Plan, PlannedStep
from treft.study.store import Store
from treft.study.worker import Report, Ticket

MAX_RETRIES = 2
"""Times that a step is started again after its worker died."""

Kind = Literal["started", "done", "stood", "died", "failed"]


class Workers(Protocol):
    """Where steps run."""

    def check(self, plan: Plan) -> None:
        """Refuse what can never run here."""

    def submit(self, ticket: Ticket) -> Future[Report] | None:
        """Start a step; None while there is no room."""

    def close(self) -> None:
        """End all that is running."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a step.

    Attributes:
        kind: what.
        name: of the step.
        num_done: missing steps done so far.
        num_steps: that were missing at the start.
        detail: seconds in words, or the traceback.
    """

    kind: Kind
    name: str
    num_done: int
    num_steps: int
    detail: str = ""


Notify = Callable[[Event], None]


@dataclass
class Outcome:
    """What a run did, by name of the step.

    Attributes:
        done: seconds of each step that was done.
        stood: what was there before, or was done by another run meanwhile.
        failed: traceback of each step that failed.
        waiting: steps that could not run because of those.
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
    """By address, what must run for all results to stand.

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


def run_plan(plan: Plan, store: Store, workers: Workers, notify: Notify) -> Outcome:
    """Do what is missing. A failed step stops only the steps that need it.

    Args:
        plan: all steps.
        store: of results; continued.
        workers: closed at the end, also after Ctrl-C.
        notify: told of each event.

    Raises:
        ConfigError: a step can never run on these workers.
    """
    try:
        workers.check(plan)
        return _Run(plan, store, workers, notify).go()
    finally:
        workers.close()


class _Run:
    """The state of one run."""

    def __init__(self, plan: Plan, store: Store, workers: Workers, notify: Notify) -> None:
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
        self.running: dict[Future[Report], PlannedStep] = {}
        self.num_done = 0
        everything = plan.by_address.items()
        stood = [
            planned.step.name for address, planned in everything if address not in self.missing
        ]
        self.outcome = Outcome(stood=stood)

    def go(self) -> Outcome:
        """Until nothing runs and nothing can."""
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
                if (again := self._end(future)) is not None:
                    ready.appendleft(again)
        done = {*self.outcome.done, *self.outcome.stood, *self.outcome.failed}
        names = [planned.step.name for planned in self.missing.values()]
        self.outcome.waiting = [name for name in names if name not in done]
        return self.outcome

    def _start(self, planned: PlannedStep) -> bool:
        future = self.workers.submit(Ticket(planned, self.store.folder))
        if future is None:
            return False
        self.running[future] = planned
        self._tell("started", planned)
        return True

    def _end(self, future: Future[Report]) -> PlannedStep | None:
        """Take note of a step's end; returns the step if it must start again."""
        planned = self.running.pop(future)
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            return self._died(planned)
        report = future.result() if error is None else Report(error=f"{error}")
        if report.error is not None:
            self._failed(planned, report.error)
            return None
        self.order.done(planned.address)
        self.num_done += 1
        if report.seconds is None:
            self.outcome.stood.append(planned.step.name)
            self._tell("stood", planned)
        else:
            self.outcome.done[planned.step.name] = report.seconds
            self._tell("done", planned, f"{report.seconds:.1f} s")
        return None

    def _died(self, planned: PlannedStep) -> PlannedStep | None:
        self.deaths[planned.address] += 1
        if self.deaths[planned.address] <= MAX_RETRIES:
            self._tell("died", planned, "its worker died; it starts again")
            return planned
        self._failed(planned, f"its worker died {MAX_RETRIES + 1} times; out of memory?")
        return None

    def _failed(self, planned: PlannedStep, error: str) -> None:
        self.outcome.failed[planned.step.name] = error
        self._tell("failed", planned, error)

    def _tell(self, kind: Kind, planned: PlannedStep, detail: str = "") -> None:
        event = Event(kind, planned.step.name, self.num_done, len(self.missing), detail)
        self.notify(event)
