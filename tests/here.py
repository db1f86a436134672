"""Workers that are this process, for tests whose subject is not where steps run."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

from treft.steps.run import Seconds, do_step
from treft.steps.step import Plan, Step


class Here:
    """Does each step in this process, where fake judges and patched modules are."""

    def __init__(self, *_: Any) -> None:
        pass

    def check(self, plan: Plan) -> None:
        """Everything runs here."""

    def submit(self, step: Step[Any], store: Path) -> Future[Seconds]:
        """Do it at once."""
        done: Future[Seconds] = Future()
        try:
            done.set_result(do_step(step, store))
        except RuntimeError as error:
            done.set_exception(error)
        return done

    def close(self) -> None:
        """Nothing runs."""
