"""An address changes with what decides the result, and with nothing else."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fake_steps
import pytest
from fake_steps import Fake, step

from treft.errors import ConfigError
from treft.steps.step import Plan, Resources, Step, Work, version, version_of


def address(one: Step[Any]) -> str:
    """As it is found when the step is planned anew."""
    return changed(one).address


def changed(one: Step[Any], **fields: Any) -> Step[Any]:
    return dataclasses.replace(one, **fields)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("one\n")
    return folder


def test_what_decides_the_result_changes_the_address(data: Path, tmp_path: Path) -> None:
    plain = changed(step("a"), inputs={"rows": data})
    more = tmp_path / "more"
    more.mkdir()
    (more / "rows.jsonl").write_text("one\n")
    (more / "more.jsonl").write_text("")
    others = [
        changed(plain, config=Fake("b")),
        changed(plain, config=Fake("a", 1.0)),
        changed(plain, seed=1),
        changed(plain, seed=None),
        changed(plain, function=fake_steps.other),
        changed(plain, inputs={}),
        changed(plain, inputs={"rows": more}),
        changed(plain, inputs={"other": data}),
    ]
    addresses = [address(one) for one in (plain, *others)]
    assert len(set(addresses)) == len(addresses)


def test_what_does_not_decide_it_leaves_the_address(data: Path, tmp_path: Path) -> None:
    plain = changed(step("a"), inputs={"rows": data})
    elsewhere = tmp_path / "elsewhere"
    data_there = elsewhere / "data"
    data_there.mkdir(parents=True)
    (data_there / "rows.jsonl").write_text("one\n")
    (data_there / ".cache").write_text("anything")
    same = [
        changed(plain, name="another name"),
        changed(plain, resources=Resources(cpus=8, gpus=1)),
        changed(plain, inputs={"rows": data_there}),
        changed(plain, config=Fake(text="a")),
    ]
    assert {address(one) for one in same} == {address(plain)}


def test_contents_of_data_change_the_address_even_when_size_stays(data: Path) -> None:
    plain = changed(step("a"), inputs={"rows": data})
    before = address(plain)
    rows = data / "rows.jsonl"
    rows.write_text("two\n")
    os.utime(rows, ns=(1, 1))
    assert address(plain) != before
    rows.write_text("one\n")
    assert address(plain) == before


def test_an_input_change_reaches_every_step_above_it() -> None:
    def chain(seconds: float) -> dict[str, str]:
        first = step("a", seconds=seconds)
        steps = [step("c", step("b", first)), step("d")]
        return {name: one.address for name, one in Plan.of(steps).named.items()}

    before, after = chain(0.0), chain(1.0)
    assert [name for name in "abcd" if before[name] != after[name]] == ["a", "b", "c"]


def test_an_input_is_known_by_its_role_and_not_by_its_name() -> None:
    def above(name: str, role: str) -> str:
        return address(
            Step("top", fake_steps.join, Fake("top"), {role: changed(step("a"), name=name)})
        )

    assert above("a", "model") == above("renamed", "model")
    assert above("a", "model") != above("a", "reference")


def test_the_version_of_its_function_changes_the_address() -> None:
    plain = changed(step("a"), function=fake_steps.other)
    before = address(plain)
    assert version_of(fake_steps.other) == 1
    version(2)(fake_steps.other)
    assert version_of(fake_steps.other) == 2
    assert address(plain) != before
    version(1)(fake_steps.other)
    assert address(plain) == before


def test_order_and_one_unit_of_work_under_two_names() -> None:
    first = step("a")
    plan = Plan.of([step("b", first), first, changed(first, name="a again")])
    assert list(plan.named) == ["a", "b"]
    assert list(plan.results) == ["b"]
    both = Plan({**plan.named, **Plan.of([first], "other/").named})
    assert list(both.named) == ["a", "b", "other/a"]
    assert list(both.by_address.values()) == ["a", "b"]


@dataclass(frozen=True)
class Holding:
    value: Any


@dataclass
class Thawed:
    value: int = 0


def nested_function() -> Any:
    def inner(work: Work[Any]) -> None: ...

    return inner


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([step("a"), step("a", seconds=1.0)], "two steps are called a"),
        ([step("b", Step("a", fake_steps.join, {"b": 1}))], "step a: its config is a dict"),
        (
            [Step("a", fake_steps.join, Holding({"x": [1, Path("p")]}))],
            r"step a: config.value.x\[1\] is .*Path\('p'\), which JSON cannot hold",
        ),
        ([Step("a", fake_steps.join, Holding(float("nan")))], "config.value is nan"),
        ([Step("a", fake_steps.join, Holding({1: 2}))], r"config.value is \{1: 2\}"),
        ([Step("a", fake_steps.join, Thawed())], "Thawed is not frozen"),
        ([Step("a", fake_steps.join, {"b": 1})], "config is a dict, no dataclass"),
        ([Step("a", nested_function(), Fake("a"))], "cannot be imported by that name"),
        (
            [Step("a", fake_steps.join, Fake("a"), inputs={"rows": Path("/nowhere")})],
            "step a: /nowhere: there is no such file",
        ),
    ],
)
def test_what_cannot_run_is_refused_before_anything_runs(
    steps: list[Step[Any]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Plan.of(steps)


def test_resources_must_be_possible() -> None:
    with pytest.raises(ConfigError, match="at least one core"):
        Resources(cpus=0)
