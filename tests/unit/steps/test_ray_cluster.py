"""The same steps on Ray, which starts here by itself: `pip install 'treft[ray]'`, then -m slow."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import fake_steps
import pytest
from fake_steps import Fake, layers, step

from treft.errors import ConfigError
from treft.steps.run import run_plan
from treft.steps.step import Plan, Resources, Step
from treft.steps.store import Store
from treft.steps.workers import RayCluster


@pytest.fixture
def fake_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("PYTHONPATH", fake_steps.SEARCHED)
    return tmp_path / "log"


@pytest.mark.slow
def test_steps_run_on_ray_and_a_lost_workers_step_starts_again(
    tmp_path: Path, fake_log: Path
) -> None:
    pytest.importorskip("ray")
    dying: Step[Fake] = Step("dying", fake_steps.die_once, Fake("dying"), seed=0)
    broken: Step[Fake] = Step("broken", fake_steps.fail, Fake("broken"))
    wide: Step[Fake] = Step("wide", fake_steps.join, Fake("wide"), resources=Resources(cpus=2))
    steps = layers(2, 2, 0.0).named.values()
    plan = Plan.of([*steps, step("above", dying), step("lost", broken), wide])
    store = Store(tmp_path / "store")
    outcome = run_plan(plan, store, RayCluster("local", 2), lambda event: None)
    assert list(outcome.failed) == ["broken"]
    assert "broken failed on purpose" in outcome.failed["broken"]
    assert outcome.waiting == ["lost"]
    done = set(plan.named) - {"broken", "lost"}
    assert set(outcome.done) == done
    noted = [line.split() for line in fake_log.read_text().splitlines()]
    starts = Counter(name for event, name, _ in noted if event == "start")
    assert starts == dict.fromkeys({*done, "broken"}, 1) | {"dying": 2}
    above = store.path(plan["above"].address) / "text"
    assert above.read_text() == "((dying 0) above 0)"


def test_where_no_cluster_answers_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    with pytest.raises(ConfigError, match=r"no Ray cluster answers at 127.0.0.1:1"):
        RayCluster("127.0.0.1:1")


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'treft\[ray\]'"):
        RayCluster("local")
