"""Steps run once their inputs stand, each once; failures and dead workers stop no others."""

from __future__ import annotations

import importlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import fake_steps
import pytest
from fake_steps import Fake, layers, run, step

from treft.errors import ConfigError
from treft.steps.run import Event, missing_steps, run_plan
from treft.steps.step import Plan, Resources, Step
from treft.steps.store import Store
from treft.steps.workers import LocalPool

PATIENCE = 60.0


@pytest.fixture(autouse=True)
def fake_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def lines(log: Path, event: str) -> list[str]:
    """Names of steps of which the event was noted."""
    found = log.read_text().splitlines() if log.exists() else []
    return [line.split()[1] for line in found if line.split()[0] == event]


def pids(log: Path) -> set[int]:
    return {int(line.split()[2]) for line in log.read_text().splitlines() if line.count(" ") == 2}


def texts(plan: Plan, store: Store) -> dict[str, str]:
    return {
        planned.name: (store.path(planned.address) / "text").read_text()
        for planned in plan.named.values()
    }


def standing(plan: Plan, store: Store) -> set[str]:
    return {planned.name for planned in plan.named.values() if store.stands(planned.address)}


def test_results_come_from_the_inputs_and_stand_for_the_next_run(
    store: Store, fake_log: Path
) -> None:
    first = step("a")
    second = step("b", first)
    plan = Plan.of([step("top", first, second)])
    outcome = run(plan, store)
    assert outcome.complete
    assert set(outcome.done) == {"top", "a", "b"}
    assert texts(plan, store)["top"] == "((a 0) ((a 0) b 0) top 0)"
    again = run(plan, store)
    assert again.complete
    assert again.done == {}
    assert set(again.stood) == {"top", "a", "b"}
    assert Counter(lines(fake_log, "start")) == {"top": 1, "a": 1, "b": 1}


def test_a_result_that_stands_needs_no_inputs(store: Store) -> None:
    plan = Plan.of([step("c", step("b", step("a")))])
    run(plan, store)
    (store.path(plan["a"].address) / "text").unlink()
    assert missing_steps(plan, store) == {}
    (store.path(plan["c"].address) / "text").unlink()
    assert list(missing_steps(plan, store)) == [plan["c"].address]


def test_a_failed_step_is_told_and_stops_only_what_needs_it(store: Store, fake_log: Path) -> None:
    broken: Step[Fake] = Step("broken", fake_steps.fail, Fake("broken"))
    plan = Plan.of([step("above", broken), step("b", step("a"))])
    outcome = run(plan, store)
    assert not outcome.complete
    assert list(outcome.failed) == ["broken"]
    assert "RuntimeError: broken failed on purpose" in outcome.failed["broken"]
    assert "fake_steps.py" in outcome.failed["broken"]
    assert outcome.waiting == ["above"]
    assert set(outcome.done) == {"a", "b"}
    assert lines(fake_log, "start").count("broken") == 1


def test_a_dead_workers_step_starts_again(store: Store, fake_log: Path) -> None:
    dying: Step[Fake] = Step("dying", fake_steps.die_once, Fake("dying"))
    plan = Plan.of([step("above", dying), step("beside", seconds=0.5)])
    events: list[Event] = []
    outcome = run_plan(plan, store, LocalPool(2), events.append)
    assert outcome.complete
    assert [event.name for event in events if event.kind == "died"] == ["dying"]
    assert Counter(lines(fake_log, "start")) == {"dying": 2, "above": 1, "beside": 1}


def test_a_step_whose_worker_always_dies_is_given_up(store: Store, fake_log: Path) -> None:
    dying: Step[Fake] = Step("dying", fake_steps.die, Fake("dying"))
    outcome = run(Plan.of([dying, step("a")]), store)
    assert list(outcome.failed) == ["dying"]
    assert "died 3 times" in outcome.failed["dying"]
    assert lines(fake_log, "start").count("dying") == 3
    assert set(outcome.done) == {"a"}


def test_workers_get_their_share(store: Store) -> None:
    def telling(name: str, cpus: int, gpus: int) -> Step[Fake]:
        resources = Resources(cpus, gpus)
        return Step(name, fake_steps.tell_environment, Fake(name), resources=resources)

    plan = Plan.of([telling("one", 1, 0), telling("two", 2, 1), telling("five", 5, 2)])
    pool = LocalPool(3, gpus=("3", "5"))
    assert run_plan(plan, store, pool, lambda event: None).complete
    found = texts(plan, store)
    assert found["one"] == "OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES="
    assert found["two"].startswith("OMP_NUM_THREADS=2 CUDA_VISIBLE_DEVICES=")
    assert found["two"][-1] in "35"
    assert found["five"] == "OMP_NUM_THREADS=3 CUDA_VISIBLE_DEVICES=3,5"


IMPORTS_TORCH = """
import torch
from pathlib import Path
from fake_steps import Fake, run, tell_threads
from treft.steps.step import Plan, Step
from treft.steps.store import Store

if __name__ == "__main__":
    plan = Plan.of([Step("one", tell_threads, Fake("one"))])
    store = Store(Path("store").resolve())
    assert torch.get_num_threads() == 2 and run(plan, store).complete
    print((store.path(plan["one"].address) / "text").read_text())
"""


def test_a_worker_has_its_share_of_threads_where_the_script_imports_torch_first(
    tmp_path: Path,
) -> None:
    script = tmp_path / "script.py"
    script.write_text(IMPORTS_TORCH)
    environment = {"OMP_NUM_THREADS": "2", "PYTHONPATH": fake_steps.SEARCHED}
    told = subprocess.check_output(
        [sys.executable, str(script)], env={**os.environ, **environment}, cwd=tmp_path, text=True
    )
    assert told == "1\n"


def test_no_more_run_at_a_time_than_there_are_cores(store: Store, fake_log: Path) -> None:
    plan = Plan.of([step(f"s{i}", seconds=0.1, cpus=1 + i % 2) for i in range(6)])
    assert run(plan, store, num_workers=2).complete
    cores = {f"s{i}": 1 + i % 2 for i in range(6)}
    taken = 0
    for line in fake_log.read_text().splitlines():
        event, name, _ = line.split()
        taken += cores[name] if event == "start" else -cores[name]
        assert 0 <= taken <= 2


def test_what_can_never_run_here_is_refused(store: Store, fake_log: Path) -> None:
    wants: Step[Fake] = Step("wants", fake_steps.join, Fake("a"), resources=Resources(1, 2))
    with pytest.raises(ConfigError, match="step wants needs 2 GPUs; here are 0"):
        run(Plan.of([step("a"), wants]), store)
    assert lines(fake_log, "start") == []
    with pytest.raises(ConfigError, match="at least one"):
        LocalPool(0)


EDITED = """
from treft.steps.step import version

@version(1)
def write(work):
    (work.folder / "text").write_text("old")
"""


def test_code_that_changed_since_the_plan_is_not_run(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    source = tmp_path / "edited_step.py"
    source.write_text(EDITED)
    write: Any = importlib.import_module("edited_step").write
    plan = Plan.of([Step("a", write, Fake("a"))])
    source.write_text(EDITED.replace("version(1)", "version(2)"))
    outcome = run(plan, store)
    assert "not the code that the steps were planned with" in outcome.failed["a"]
    assert not store.stands(plan["a"].address)


def test_data_that_changed_since_the_plan_is_not_used(store: Store, tmp_path: Path) -> None:
    data = tmp_path / "rows"
    data.write_text("one")
    plan = Plan.of([Step("a", fake_steps.join, Fake("a"), {"rows": data})])
    data.write_text("other")
    outcome = run(plan, store)
    assert "rows changed since the steps were planned" in outcome.failed["a"]
    assert not store.stands(plan["a"].address)


class Script:
    """`layers()` run by a process of its own."""

    def __init__(self, store: Store) -> None:
        here = Path(__file__).parent
        self.process = subprocess.Popen(
            [sys.executable, str(here / "fake_steps.py"), str(store.folder)],
            env={**os.environ, "PYTHONPATH": fake_steps.SEARCHED},
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def wait_for(self, log: Path, num_starts: int) -> bool:
        """Until so many steps have started in all; false if it ended before."""
        patience = time.monotonic() + PATIENCE
        while len(lines(log, "start")) < num_starts:
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < patience
            time.sleep(0.005)
        return True

    def end(self) -> int:
        _, told = self.process.communicate(timeout=PATIENCE)
        sys.stderr.write(told.decode())
        return self.process.returncode


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def wait_until_gone(found: set[int]) -> None:
    patience = time.monotonic() + PATIENCE
    while any(map(alive, found)):
        assert time.monotonic() < patience, "workers outlive the run"
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_killed_at_any_point_a_run_goes_on_to_the_same_results(
    store: Store, tmp_path: Path, fake_log: Path
) -> None:
    plan = layers()
    rng = random.Random(5)
    num_kills, stood_at_a_kill = 0, Counter[str]()
    for num_starts in (1, 4, 8):
        script = Script(store)
        started_before = len(lines(fake_log, "start"))
        if script.wait_for(fake_log, started_before + num_starts):
            time.sleep(0.2 * rng.random())
            os.kill(script.process.pid, signal.SIGKILL)
            num_kills += 1
        script.end()
        wait_until_gone(pids(fake_log))
        starts = Counter(lines(fake_log, "start"))
        for name, count in stood_at_a_kill.items():
            assert starts[name] == count, f"{name} stood and ran again"
        stood_at_a_kill = Counter({name: starts[name] for name in standing(plan, store)})
    assert num_kills >= 2

    script = Script(store)  # a worker is killed, the run is not
    if script.wait_for(fake_log, len(lines(fake_log, "start")) + 1):
        workers = {pid for pid in pids(fake_log) if alive(pid)}
        for pid in sorted(workers)[:1]:
            os.kill(pid, signal.SIGKILL)
    assert script.end() == 0
    starts = Counter(lines(fake_log, "start"))
    for name, count in stood_at_a_kill.items():
        assert starts[name] == count
    assert sum(starts.values()) <= len(plan.named) + 2 * num_kills + 1  # two workers at a time

    whole = Store(tmp_path / "whole")
    assert run(plan, whole).complete
    assert texts(plan, store) == texts(plan, whole)
    hidden = [path.name for path in store.folder.iterdir() if path.name.startswith(".")]
    assert hidden == [".locks"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_ctrl_c_ends_workers_and_leaves_what_stands(store: Store, fake_log: Path) -> None:
    plan = layers()
    script = Script(store)
    assert script.wait_for(fake_log, 5)
    os.killpg(script.process.pid, signal.SIGINT)
    assert script.end() != 0
    wait_until_gone(pids(fake_log))
    stood = standing(plan, store)
    assert stood
    assert run(plan, store).complete
    starts = Counter(lines(fake_log, "start"))
    assert all(starts[name] == 1 for name in stood)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_two_runs_of_one_plan_share_the_work(store: Store, fake_log: Path) -> None:
    scripts = [Script(store), Script(store)]
    assert [script.end() for script in scripts] == [0, 0]
    assert set(Counter(lines(fake_log, "start")).values()) == {1}
