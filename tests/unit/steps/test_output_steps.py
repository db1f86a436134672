"""Steps that are kept in an output folder: done once, and never for another piece of work."""

from __future__ import annotations

from pathlib import Path

import pytest

from treft.errors import ConfigError
from treft.steps.store import check_claim, claim

WHAT = "diagnosis"


def test_a_step_is_done_once(tmp_path: Path) -> None:
    done: list[int] = []

    def compute() -> dict[str, float]:
        done.append(1)
        return {"value": 0.5}

    first = claim(tmp_path / "out", {"seed": 1}, WHAT).keep("part/one", compute)
    again = claim(tmp_path / "out", {"seed": 1}, WHAT)
    assert again.keep("part/one", compute) == first == {"value": 0.5}
    assert done == [1]


def test_the_time_of_each_step_is_told(tmp_path: Path) -> None:
    steps = claim(tmp_path, {}, WHAT)
    for name in ("two", "one"):
        steps.keep(name, lambda: 1)
    seconds = {record["address"]: record["seconds"] for record in steps.records()}
    assert list(seconds) == ["two", "one"]
    assert min(seconds.values()) >= 0


def test_a_step_that_failed_leaves_nothing(tmp_path: Path) -> None:
    steps = claim(tmp_path, {}, WHAT)

    def fail() -> None:
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        steps.keep("one", fail)
    assert not list(tmp_path.glob("steps/[!.]*"))
    assert claim(tmp_path, {}, WHAT).keep("one", lambda: 3) == 3


def test_nothing_is_written_before_the_folder_is_claimed(tmp_path: Path) -> None:
    check_claim(tmp_path / "out", {"seed": 1}, WHAT)
    assert not (tmp_path / "out").exists()


def test_another_piece_of_work_is_refused(tmp_path: Path) -> None:
    claim(tmp_path, {"seed": 1, "models": "a"}, WHAT)
    with pytest.raises(ConfigError, match="other seed"):
        claim(tmp_path, {"seed": 2, "models": "a"}, WHAT)
    with pytest.raises(ConfigError, match="other budget"):
        check_claim(tmp_path, {"seed": 1, "models": "a", "budget": "full"}, WHAT)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="something else"):
        claim(tmp_path, {}, WHAT)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
@pytest.mark.parametrize("file", ["step.json", "result.json"])
def test_a_damaged_step_is_named_and_done_again(
    tmp_path: Path, text: str, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    claim(tmp_path, {}, WHAT).keep("one", lambda: 1)
    (tmp_path / "steps" / "one" / file).write_text(text)
    assert claim(tmp_path, {}, WHAT).keep("one", lambda: 2) == 2
    assert "one is damaged" in caplog.text
