"""A result is there whole or not at all, however its making ends."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from treft.errors import DataError
from treft.steps.store import RECORD, Store

ADDRESS = "a" * 64
ABOUT = {"config": {"x": 1}, "seed": 3}


def fill(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "text").write_text("result")


def left_behind(store: Store) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir() if path.name != ".locks")


def test_a_result_with_what_it_was_made_from(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert not store.stands(ADDRESS)
    seconds = store.make(ADDRESS, ABOUT, fill)
    record = store.record(ADDRESS)
    assert record is not None
    assert record["config"] == {"x": 1}
    assert record["seed"] == 3
    assert record["seconds"] == pytest.approx(seconds, abs=1e-3)
    assert record["machine"]["cores"] >= 1
    assert list(record["files"]) == ["inner/text"]
    assert (store.path(ADDRESS) / "inner" / "text").read_text() == "result"
    assert left_behind(store) == [ADDRESS]


def test_what_stands_is_not_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.make(ADDRESS, ABOUT, fill)

    def never(folder: Path) -> None:
        raise AssertionError

    assert store.make(ADDRESS, ABOUT, never) is None


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fails(folder: Path) -> None:
        fill(folder)
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        store.make(ADDRESS, ABOUT, fails)
    assert left_behind(store) == []


def cut(path: Path) -> None:
    path.write_text(path.read_text()[:-2])


def remove_text(folder: Path) -> None:
    (folder / "inner" / "text").unlink()


def other_byte(folder: Path) -> None:
    (folder / "inner" / "text").write_text("resulT")


def other_address(folder: Path) -> None:
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps({**record, "address": "b" * 64}))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "a byte": other_byte,
    "a file is short": lambda folder: cut(folder / "inner" / "text"),
    "a file is gone": remove_text,
    "no record": lambda folder: (folder / RECORD).unlink(),
    "half a record": lambda folder: cut(folder / RECORD),
    "a record of something else": lambda folder: (folder / RECORD).write_text("[1]"),
    "the record of another address": other_address,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_seen_put_aside_and_mended(
    tmp_path: Path, damage: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    store.make(ADDRESS, ABOUT, fill)
    damage(store.path(ADDRESS))
    assert not store.stands(ADDRESS)
    assert store.make(ADDRESS, ABOUT, fill) is not None
    assert store.stands(ADDRESS)
    assert "is damaged" in caplog.text
    assert [name.endswith(".damaged") for name in left_behind(store)] == [True, False]


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    store = Store(tmp_path)
    half = tmp_path / f".{ADDRESS}.left"
    half.mkdir()
    (half / "text").write_text("half")
    store.make(ADDRESS, ABOUT, fill)
    assert left_behind(store) == [ADDRESS]


def make_slowly(folder: Path, together: Any, made: Any) -> None:
    def slowly(target: Path) -> None:
        fill(target)
        with open(folder / ".count", "a") as file:
            file.write("x")

    together.wait()
    made.put(Store(folder).make(ADDRESS, ABOUT, slowly) is not None)


def test_of_processes_that_race_one_makes_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    together, made = context.Barrier(3), context.SimpleQueue()
    racers = [
        context.Process(target=make_slowly, args=(tmp_path, together, made)) for _ in range(3)
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
        assert racer.exitcode == 0
    assert sorted(made.get() for _ in racers) == [False, False, True]
    assert (tmp_path / ".count").read_text() == "x"
    assert Store(tmp_path).stands(ADDRESS)


def test_where_locks_do_nothing_the_one_that_was_faster_stays(tmp_path: Path) -> None:
    """As on a shared disk without locks: another process finishes while this one works."""
    store = Store(tmp_path / "mine")
    elsewhere = Store(tmp_path / "elsewhere")
    elsewhere.make(ADDRESS, ABOUT, fill)

    def overtaken(folder: Path) -> None:
        fill(folder)
        elsewhere.path(ADDRESS).rename(store.path(ADDRESS))

    store.make(ADDRESS, {**ABOUT, "late": True}, overtaken)
    record = store.record(ADDRESS)
    assert record is not None
    assert "late" not in record
    assert left_behind(store) == [ADDRESS]


def test_a_step_may_not_write_the_record(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"may not write step.json"):
        Store(tmp_path).make(ADDRESS, ABOUT, lambda folder: (folder / RECORD).write_text("{}"))
