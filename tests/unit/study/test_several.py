"""Several studies in one run share steps; their results make one page; costs are told before."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from here import Here
from made_studies import made_studies, use_made_studies

from treft.cli.study_results import deliver
from treft.errors import ConfigError, DataError
from treft.steps.run import estimate_cost, missing_steps, run_plan
from treft.steps.step import Plan
from treft.steps.store import Store
from treft.steps.workers import LocalPool
from treft.study.catalogue import find_studies, plan_studies, plan_study
from treft.study.figures import shown
from treft.study.index import is_index, paper_index
from treft.study.protocol import StudyConfig
from treft.study.tables import RESULT_FILES, TABLE

CONFIG = StudyConfig(num_seeds=2)


@pytest.fixture(autouse=True)
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_made_studies(monkeypatch, tmp_path / "log")
    return tmp_path / "log"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def several(config: StudyConfig, *names: str) -> Plan:
    return plan_studies(find_studies(names).values(), config)


def run(plan: Plan, store: Store) -> Any:
    return run_plan(plan, store, Here(), lambda event: None)


def results(plan: Plan, store: Store, target: Path, names: Sequence[str]) -> Path:
    folders = {name: store.path(plan[f"{name}/{TABLE}"].address) for name in names}
    deliver(folders, {name: target / name for name in names})
    return target


def test_several_studies_do_shared_steps_once_and_have_their_own_tables(
    store: Store, log: Path
) -> None:
    plan = several(CONFIG, "left", "right", "left")
    for name in ("left", "right"):
        assert (
            plan[f"{name}/table"].address == plan_study(made_studies()[name], CONFIG)[TABLE].address
        )
    assert len(plan.named) == 2 * 5
    assert len(plan.by_address) == 2 * 5 - 2
    assert run(plan, store).complete
    assert set(Counter(log.read_text().split()).values()) == {1}
    assert missing_steps(plan_study(made_studies()["left"], CONFIG), store) == {}


def test_all_stands_for_every_study() -> None:
    assert list(find_studies(["all"])) == list(made_studies())
    with pytest.raises(ConfigError, match="no study third; there are left, right"):
        find_studies(["left", "third"])


def test_a_configuration_that_one_study_cannot_run_names_it() -> None:
    def steps(config: StudyConfig) -> Any:
        raise ConfigError("not that.")

    study = made_studies()["left"]
    refusing = type(study)("bad", study.claim, "", steps, study.table, study.verdict, study.plot)
    with pytest.raises(ConfigError, match="study bad: not that"):
        plan_studies([study, refusing], CONFIG)


def test_a_failed_study_stops_no_other(store: Store, tmp_path: Path) -> None:
    plan = several(StudyConfig(num_seeds=2, settings={"broken": "right"}), "right", "left")
    outcome = run(plan, store)
    assert set(outcome.failed) == {"right/score/0", "right/score/1"}
    assert outcome.waiting == ["right/table"]
    assert store.stands(plan["left/table"].address)
    assert not store.stands(plan["right/table"].address)


def test_what_an_end_made_possible_goes_first(store: Store, log: Path) -> None:
    one_at_a_time = LocalPool(1)
    run_plan(several(CONFIG, "left", "right"), store, one_at_a_time, lambda event: None)
    assert log.read_text().split() == [
        "train-0",
        "left-0",
        "right-0",
        "train-1",
        "left-1",
        "right-1",
    ]


def test_cost_is_that_of_kept_steps_of_the_same_kind(store: Store) -> None:
    plan = several(CONFIG, "left")
    missing = missing_steps(plan, store)
    unknown = estimate_cost(missing.values(), store)
    assert (unknown.num_steps, unknown.num_estimated, unknown.core_seconds) == (5, 0, 0.0)
    assert "time unknown" in str(unknown)
    assert run(plan, store).complete
    assert str(estimate_cost([], store)) == "nothing to compute"

    def took(name: str, seconds: float) -> None:
        path = store.path(plan[name].address) / "step.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": seconds}))

    for seed, (train, score) in enumerate([(100.0, 4.0), (110.0, 6.0)]):
        took(f"left/train/{seed}", train)
        took(f"left/score/{seed}", score)
    took("left/table", 1.0)
    more = several(StudyConfig(num_seeds=3), "left", "right")  # one train, four scores, two tables
    cost = estimate_cost(missing_steps(more, store).values(), store)
    assert (cost.num_steps, cost.num_estimated) == (7, 7)
    assert cost.core_seconds == 105.0 + 4 * 5.0 + 2 * 1.0
    assert str(cost) == "about 2 core minutes"


def test_the_page_has_claims_in_the_papers_order_with_what_was_found(
    store: Store, tmp_path: Path
) -> None:
    plan = several(CONFIG, "left", "right")
    run(plan, store)
    kept = results(plan, store, tmp_path / "docs" / "kept", ["left", "right"])
    page = paper_index(kept, tmp_path / "docs")
    assert is_index(page)
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert headings == ["## unrun", "## right", "## left", "## What the results come from"]
    assert "not the paper's" in page.partition("## ")[0]
    assert "| Table 2 | [unrun](#unrun) | not run |" in page
    assert "| Table 12 | [right](#right) | Held here |" in page
    assert "    treft study run right --seeds 2\n" in page
    assert "    treft study run unrun\n\nNot run." in page
    assert "[table.md](kept/right/table.md)" in page
    tables = {name: (kept / name / "table.md").read_text() for name in ("left", "right")}
    assert "| a\\|b | 10.5 [9.5, 11.5] (paper: 20.0) |" in tables["right"]
    assert "| a\\|b | 10.5 [9.5, 11.5] |" in tables["left"]
    assert "\nHeld here: right is 10.5.\n" in page
    assert "[table.csv](kept/right/table.csv)" in page
    origins = page.partition("## What")[2].splitlines()
    [right] = [line for line in origins if line.startswith("| right |")]
    assert "| 0, 1 | 2 runs | test |" in right


def test_the_page_tells_what_a_study_was_told(store: Store, tmp_path: Path) -> None:
    config = StudyConfig((), 1, "validation", {"max_steps": "2", "note": "a b"})
    plan = several(config, "left", "right")
    run(plan, store)
    page = paper_index(results(plan, store, tmp_path / "kept", ["left"]), tmp_path)
    command = "treft study run left --seeds 1 --split validation --set max_steps=2 --set 'note=a b'"
    assert f"    {command}\n" in page


def test_results_that_cannot_be_read_are_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere is no folder"):
        paper_index(tmp_path / "nowhere", tmp_path)
    plan = several(CONFIG, "left", "right")
    run(plan, store)
    kept = results(plan, store, tmp_path / "kept", ["left"])
    assert {path.name for path in (kept / "left").iterdir()} == set(RESULT_FILES)
    (kept / "left").rename(kept / "right")
    with pytest.raises(DataError, match=r"right/result\.json is a result of left"):
        paper_index(kept, tmp_path)
    (kept / "right" / "result.json").write_text('{"study": "right"}')
    with pytest.raises(DataError, match=r"right/result\.json: claim: Field required"):
        paper_index(kept, tmp_path)


def test_figures_of_many_measures_are_turned_and_small_ones_keep_two_digits() -> None:
    row = {"method": "a|b", "measure": "general", "value": 10.5, "low": 9.5, "high": 11.5}
    small = {"measure": "drift", "value": 0.00039, "low": None, "high": None}
    share = {"measure": "share", "value": 0.0, "low": 0.0, "high": 0.5, "paper": 61.4}
    rows = [{**row, "paper": None, **changed} for changed in ({}, small, share)]
    table = shown(rows).markdown()
    assert "| measure | a\\|b |" in table
    assert "| drift | 0.00039 |" in table
    assert "| share | 0.0 [0.0, 0.5] (paper: 61.4) |" in table
