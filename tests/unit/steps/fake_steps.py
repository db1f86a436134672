"""Steps that only take time, for tests of what runs them; also a script that runs a plan of them.

Each writes lines `EVENT NAME PID` to the file named by FAKE_LOG: one when it starts, one when its
result is all but kept.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treft.steps.run import Outcome, run_plan
from treft.steps.step import Plan, Resources, Step, Work
from treft.steps.store import Store
from treft.steps.workers import LocalPool

SEARCHED = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
"""PYTHONPATH of processes that import this file."""


@dataclass(frozen=True)
class Fake:
    """What to write, and how long that takes."""

    text: str
    seconds: float = 0.0


def log(event: str, name: str) -> None:
    with open(os.environ["FAKE_LOG"], "a", encoding="utf-8") as file:
        file.write(f"{event} {name} {os.getpid()}\n")


def join(work: Work[Fake]) -> None:
    """The inputs' texts, then its own and the seed."""
    log("start", work.config.text)
    time.sleep(work.config.seconds)
    paths = [path / "text" if path.is_dir() else path for _, path in sorted(work.inputs.items())]
    inputs = [path.read_text() for path in paths]
    (work.folder / "text").write_text(
        "(" + " ".join([*inputs, work.config.text, str(work.seed)]) + ")"
    )
    log("end", work.config.text)


def other(work: Work[Fake]) -> None:
    join(work)


def fail(work: Work[Fake]) -> None:
    log("start", work.config.text)
    raise RuntimeError(f"{work.config.text} failed on purpose")


def die(work: Work[Fake]) -> None:
    """Each time; the worker process is gone without a word."""
    log("start", work.config.text)
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(work: Work[Fake]) -> None:
    """The first time only."""
    mark = Path(os.environ["FAKE_LOG"]).with_suffix(".died")
    if not mark.exists():
        mark.touch()
        die(work)
    join(work)


def tell_environment(work: Work[Fake]) -> None:
    names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    (work.folder / "text").write_text(" ".join(f"{name}={os.environ[name]}" for name in names))


def tell_threads(work: Work[Fake]) -> None:
    import torch

    (work.folder / "text").write_text(str(torch.get_num_threads()))


def step(name: str, *inputs: Step[Any], seconds: float = 0.0, cpus: int = 1) -> Step[Fake]:
    """A step whose text is its name."""
    roles = {one.name: one for one in inputs}
    return Step(name, join, Fake(name, seconds), roles, seed=0, resources=Resources(cpus))


def layers(num_layers: int = 4, width: int = 3, seconds: float = 0.15) -> Plan:
    """Each step needs two of the layer before."""
    below: list[Step[Fake]] = []
    for layer in range(num_layers):
        below = [
            step(
                f"{layer}-{place}",
                *([below[place], below[(place + 1) % width]] if below else []),
                seconds=seconds,
            )
            for place in range(width)
        ]
    return Plan.of(below)


def run(plan: Plan, store: Store, num_workers: int = 2) -> Outcome:
    return run_plan(plan, store, LocalPool(num_workers), lambda event: None)


def main(folder: Path) -> None:
    """Run `layers()` in a store."""
    assert run(layers(), Store(folder)).complete


if __name__ == "__main__":
    import fake_steps  # so that the steps' functions are a module's, not a script's

    fake_steps.main(Path(sys.argv[1]))
