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
from treft.steps.step import Resources, Step, Work, make_plan, version, version_of


def address(*steps: Step[Any]) -> str:
    """Of the last step."""
    return make_plan(steps)[steps[-1].name].address


def changed(one: Step[Fake], **fields: Any) -> Step[Fake]:
    return dataclasses.replace(one, **fields)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("one\n")
    return folder


def test_what_decides_the_result_changes_the_address(data: Path, tmp_path: Path) -> None:
    plain = changed(step("a"), data={"rows": data})
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
        changed(plain, data={}),
        changed(plain, data={"rows": more}),
        changed(plain, data={"other": data}),
    ]
    addresses = [address(one) for one in (plain, *others)]
    assert len(set(addresses)) == len(addresses)


def test_what_does_not_decide_it_leaves_the_address(data: Path, tmp_path: Path) -> None:
    plain = changed(step("a"), data={"rows": data})
    elsewhere = tmp_path / "elsewhere"
    data_there = elsewhere / "data"
    data_there.mkdir(parents=True)
    (data_there / "rows.jsonl").write_text("one\n")
    (data_there / ".cache").write_text("anything")
    same = [
        changed(plain, name="another name"),
        changed(plain, resources=Resources(cpus=8, gpus=1)),
        changed(plain, data={"rows": data_there}),
        changed(plain, config=Fake(text="a")),
    ]
    assert {address(one) for one in same} == {address(plain)}


def test_contents_of_data_change_the_address_even_when_size_stays(data: Path) -> None:
    plain = changed(step("a"), data={"rows": data})
    before = address(plain)
    rows = data / "rows.jsonl"
    rows.write_text("two\n")
    os.utime(rows, ns=(1, 1))
    assert address(plain) != before
    rows.write_text("one\n")
    assert address(plain) == before


def test_an_input_change_reaches_every_step_above_it() -> None:
    def chain(seconds: float) -> dict[str, str]:
        steps = [step("a", seconds=seconds), step("b", "a"), step("c", "b"), step("d")]
        return {planned.step.name: planned.address for planned in make_plan(steps).steps}

    before, after = chain(0.0), chain(1.0)
    assert [name for name in "abcd" if before[name] != after[name]] == ["a", "b", "c"]


def test_an_input_is_known_by_its_role_and_not_by_its_name() -> None:
    def above(name: str, role: str) -> str:
        top = Step("top", fake_steps.join, Fake("top"), {role: name})
        return address(step("a") if name == "a" else changed(step("a"), name=name), top)

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
    plan = make_plan([step("b", "a"), step("a"), changed(step("a"), name="a again")])
    names = [planned.step.name for planned in plan.steps]
    assert names.index("a") < names.index("b")
    assert len(plan.by_address) == 2


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
        ([step("a", "b"), step("b", "c"), step("c", "a")], "wait for each other: .* -> "),
        ([step("a", "a")], "wait for each other: a -> a"),
        ([step("a", "b")], "step a: its input b is b, which is none"),
        ([step("a"), step("a")], "two steps are called a"),
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
            [Step("a", fake_steps.join, Fake("a"), data={"rows": Path("/nowhere")})],
            "step a: /nowhere: there is no such file",
        ),
    ],
)
def test_what_cannot_run_is_refused_before_anything_runs(
    steps: list[Step[Any]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(steps)


def test_resources_must_be_possible() -> None:
    with pytest.raises(ConfigError, match="at least one core"):
        Resources(cpus=0)
