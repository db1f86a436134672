"""Steps that are kept: done once, and never for another piece of work."""

from __future__ import annotations

from pathlib import Path

import pytest

from treft.errors import ConfigError, DataError
from treft.steps.store import Steps

WHAT = "diagnosis"


def test_a_step_is_done_once(tmp_path: Path) -> None:
    done: list[int] = []

    def compute() -> dict[str, float]:
        done.append(1)
        return {"value": 0.5}

    first = Steps(tmp_path / "out", {"seed": 1}, WHAT).run("one", compute)
    again = Steps(tmp_path / "out", {"seed": 1}, WHAT)
    assert again.run("one", compute) == first == {"value": 0.5}
    assert done == [1]
    assert again.seconds["one"] >= 0


def test_a_step_that_failed_leaves_nothing(tmp_path: Path) -> None:
    steps = Steps(tmp_path, {}, WHAT)

    def fail() -> None:
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        steps.run("one", fail)
    assert not list(tmp_path.glob("steps/*"))
    assert Steps(tmp_path, {}, WHAT).run("one", lambda: 3) == 3


def test_nothing_is_written_before_the_first_step(tmp_path: Path) -> None:
    Steps(tmp_path / "out", {"seed": 1}, WHAT)
    assert not (tmp_path / "out").exists()


def test_another_piece_of_work_is_refused(tmp_path: Path) -> None:
    Steps(tmp_path, {"seed": 1, "models": "a"}, WHAT).claim()
    with pytest.raises(ConfigError, match="other seed"):
        Steps(tmp_path, {"seed": 2, "models": "a"}, WHAT)
    with pytest.raises(ConfigError, match="other budget"):
        Steps(tmp_path, {"seed": 1, "models": "a", "budget": "full"}, WHAT)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="something else"):
        Steps(tmp_path, {}, WHAT)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    steps = Steps(tmp_path, {}, WHAT)
    steps.run("one", lambda: 1)
    (tmp_path / "steps" / "one.json").write_text(text)
    with pytest.raises(DataError, match=r"one\.json"):
        Steps(tmp_path, {}, WHAT).run("one", lambda: 1)
