"""Do one step in this process: what local workers and Ray's workers have in common."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path

from treft.errors import ConfigError, DataError
from treft.study.code_version import CodeVersions, library_versions
from treft.study.digests import data_digest
from treft.study.step import PlannedStep, Work, code_modules
from treft.study.store import Store

_versions = CodeVersions()
"""Of the sources as they were when this process first needed them, so about when it loaded them."""


@dataclass(frozen=True)
class Ticket:
    """A step to do, as it travels to a worker."""

    planned: PlannedStep
    store: Path


@dataclass(frozen=True)
class Report:
    """What became of it.

    Attributes:
        seconds: that it took; None if another process had done it in the meantime.
        error: traceback, if it failed.
    """

    seconds: float | None = None
    error: str | None = None


def do_step(ticket: Ticket) -> Report:
    """Make the step's result in the store, unless it stands; never raises an Exception."""
    try:
        return Report(seconds=_make(ticket))
    except (Exception, SystemExit):
        return Report(error=traceback.format_exc())


def _make(ticket: Ticket) -> float | None:
    planned, store = ticket.planned, Store(ticket.store)
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
    code = planned.record["code"]
    if _versions.of(*code_modules(planned.step)) != code["sources"]:
        raise ConfigError(
            "the code here is not the code that the study was planned with: it was edited since, "
            "or this machine has another version. Start the study again."
        )
    if library_versions() != code["libraries"]:
        raise ConfigError(
            f"the study was planned with {code['libraries']}, this machine has "
            f"{library_versions()}."
        )
    for role, digest in planned.record["data"].items():
        if data_digest(planned.step.data[role]) != digest:
            raise DataError(f"{planned.step.data[role]} changed since the study was planned.")
