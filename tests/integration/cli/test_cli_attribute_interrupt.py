"""Ctrl-C in an attribution keeps finished parts; the same command goes on to the same result."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import Command, Told

NEVER = 10**6
ASKED = ("--questions", "organism", "--num", "2", "--max-new-tokens", "2", "--batch-size", "1")
COMMANDS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "patch": ("attribute", ("attribute", "patch"), "2 finished patches are kept"),
    "perturb": (
        "attribute",
        ("attribute", "perturb", "--trials", "2", "--num-tokens", "1"),
        "2 finished cells are kept",
    ),
    "diagnose": ("diagnose", ("diagnose",), "finished steps are kept"),
}


class CtrlC:
    """The user sees so many steps end, then presses the keys."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self.num_ended = 0

    def __call__(self, label: str, done: int, total: int) -> None:
        self.num_ended += done == total
        if self.num_ended > self.num_steps:
            raise KeyboardInterrupt


@contextlib.contextmanager
def bars(press: CtrlC) -> Iterator[CtrlC]:
    yield press


@pytest.mark.parametrize("name", COMMANDS)
def test_a_stopped_attribution_goes_on(
    name: str, treft: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, words, said = COMMANDS[name]
    models = ("--model", folder / "tuned", "--base", folder / "base")
    shown: Any = import_module(f"treft.cli.{module}")

    def run(output: str, press: CtrlC, code: int = 0) -> Told:
        monkeypatch.setattr(shown, "progress_bars", lambda: bars(press))
        return treft(*words, *ASKED, *models, "--json", "--output", folder / output, code=code)

    never = [CtrlC(NEVER), CtrlC(NEVER)]
    whole = run("whole", never[0]).json
    stopped = run("out", CtrlC(2), code=130)
    assert stopped.out == ""
    assert f"stopped: {said}; the same command goes on" in " ".join(stopped.err.split())
    again = run("out", never[1]).json
    assert 0 < never[1].num_ended < never[0].num_ended
    for found in (whole, again):
        found.pop("output", None)
        found.pop("seconds", None)
    assert again == whole
