"""The example's loop learns, and its penalty holds the prefix."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "bare_loop.py"


def losses_and_drifts(
    capsys: pytest.CaptureFixture[str], weight: float
) -> list[tuple[float, float]]:
    runpy.run_path(str(EXAMPLE))["train"](weight, 12)
    lines = re.findall(r"loss (\S+)  drift (\S+)", capsys.readouterr().out)
    return [(float(loss), float(drift)) for loss, drift in lines]


def test_example_learns_while_the_prefix_is_held(capsys: pytest.CaptureFixture[str]) -> None:
    held, free = losses_and_drifts(capsys, 1.0), losses_and_drifts(capsys, 1e-6)
    assert held[0] == free[0]
    assert held[0][1] < 1e-10
    assert held[-1][0] < held[0][0] - 0.5
    assert held[-1][1] < free[-1][1] / 10
