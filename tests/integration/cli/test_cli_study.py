"""`treft study` from the listing to a table, on a finetune of a few steps."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import Command, Refused
from here import Here
from made_studies import made_studies, use_made_studies
from safetensors import safe_open

from treft.cli import study as study_command
from treft.steps import run as run_module
from treft.steps.step import Step
from treft.steps.workers import LocalPool
from treft.study import catalogue
from treft.study.demo import DemoConfig, run_demo
from treft.study.protocol import NotPossibleError, StudyConfig
from treft.study.tables import read_metadata, read_table

SMALL = {"max_steps": 2, "num_rows": 40, "num_general": 6, "num_in_domain": 4}
OPTIONS = ("--seeds", 1, *(word for k, v in SMALL.items() for word in ("--set", f"{k}={v}")))


def test_list_names_studies_with_claim_and_cost(treft: Command) -> None:
    studies = treft("study", "list", "--json").json["studies"]
    assert {"table3", "table14"} <= {study["name"] for study in studies}
    assert all(study["claim"] and study["cost"] and study["source"] for study in studies)
    assert "Table 14" in treft("study", "list").out


def test_status_before_anything_ran(treft: Command, tmp_path: Path) -> None:
    options = ("table14", *OPTIONS, "--store", tmp_path / "store")
    steps = treft("study", "status", *options, "--json").json["steps"]
    assert len(steps) == 17
    assert {step["state"] for step in steps} == {"missing"}
    assert "17 of 17 steps are to do" in treft("study", "status", *options).out
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("run", "table99"), "there is no study table99"),
        (("run", "table3", "--set", "max_steps"), "--set max_steps: write NAME=VALUE"),
        (("run", "table3", "--set", "max_step=3"), "no such setting: max_step"),
        (("status", "table3", "--organism", "nowhere"), "nowhere holds no organism"),
        (("run", "table3", "--output", "."), ". exists: choose another --output"),
        (("run", "all", "--output", __file__, "--overwrite"), "exists: choose another --output"),
        (("status", "table3", "table99"), "there is no study table99"),
        (("run", "all", "--set", "max_step=3"), "no such setting: max_step"),
        (("list", "table99"), "there is no study table99"),
        (("index", "nowhere", "--output", "page.md"), "nowhere is no folder"),
        (("status", "table3", "--store", __file__), "is a file; name a folder"),
    ],
)
def test_what_cannot_be_is_refused(refused: Refused, argv: tuple[str, ...], message: str) -> None:
    assert message in refused("study", *argv)


def test_ctrl_c_says_how_to_go_on(
    treft: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "run_plan", interrupted)
    told = treft("study", "run", "table3", *OPTIONS, "--store", tmp_path, code=130)
    assert "the same command goes on from here" in told.err


def test_several_studies_from_status_to_the_page_of_all(
    treft: Command, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_made_studies(monkeypatch, tmp_path / "log")
    monkeypatch.setattr(study_command, "LocalPool", Here)
    options = ("--seeds", 1, "--store", tmp_path / "store", "--workers", 1)
    kept, page = tmp_path / "kept", tmp_path / "page.md"
    broken = treft(
        *("study", "run", "left", "right", *options, "--set", "broken=right"),
        *("--output", kept, "--json"),
        code=1,
    )
    assert "0 steps stand, 5 are to do: time unknown" in broken.err
    assert "RuntimeError: broken on purpose" in broken.err
    assert broken.json["failed"] == ["right"]
    assert [result["study"] for result in broken.json["studies"]] == ["left"]
    assert [path.name for path in kept.iterdir()] == ["left"]
    assert "exists: choose another" in refused("study", "run", "all", "--output", kept)

    told = treft("study", "status", "all", *options[:4])
    assert "right  2 of 3 steps are to do" in told.out.replace("   ", "  ")
    run = treft("study", "run", "all", *options, "--output", kept, "--overwrite")
    assert "right  Held here: right is 10.0." in run.out
    assert {path.name for path in kept.iterdir()} == {"left", "right", "unrun"}
    assert treft("study", "run", "left", *options).out.count("10.0") >= 2

    told = treft("study", "index", kept, "--output", page, "--check", code=1)
    assert f"treft study index {kept} --output {page}" in told.err
    assert not page.exists()
    assert treft("study", "index", kept, "--output", page, "--json").json["changed"]
    treft("study", "index", kept, "--output", page, "--check")
    result = kept / "left" / "result.json"
    result.write_text(result.read_text().replace("Held here", "Gone"))
    treft("study", "index", kept, "--output", page, "--check", code=1)
    treft("study", "index", kept, "--output", page)
    assert "Gone: left" in page.read_text()
    page.write_text("mine")
    assert "no page that this command wrote" in refused("study", "index", kept, "--output", page)


def test_all_on_a_model_leaves_out_what_cannot_run_and_says_why(
    treft: Command, refused: Refused, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(config: StudyConfig) -> list[Step[Any]]:
        assert config.model is not None
        raise NotPossibleError("it wants an organism.")

    use_made_studies(monkeypatch, folder / "log")
    studies = made_studies()
    studies["unrun"] = replace(studies["unrun"], steps=refuse)
    monkeypatch.setattr(catalogue, "all_studies", lambda: studies)
    monkeypatch.setattr(study_command, "LocalPool", Here)
    given = (
        *("--model", folder / "base", "--train-file", f"finance={folder / 'rows.jsonl'}"),
        *("--seeds", 1, "--store", folder / "store"),
    )
    told = treft("study", "status", "all", *given)
    assert told.err == "left out unrun: it wants an organism.\n"
    assert "left" in told.out
    assert "unrun" not in told.out
    kept = treft("study", "status", "all", *given, "--json").json
    assert kept["studies"] == ["left", "right"]
    assert kept["left_out"] == {"unrun": "it wants an organism."}
    run = treft("study", "run", "all", *given, "--workers", 1, "--json")
    assert "left out unrun: it wants an organism." in run.err.splitlines()
    assert run.json["left_out"] == kept["left_out"]
    assert run.json["failed"] == []
    assert [result["study"] for result in run.json["studies"]] == ["left", "right"]
    assert "it wants an organism" in refused("study", "run", "unrun", *given)
    assert "study unrun: it wants an organism" in refused("study", "run", "left", "unrun", *given)
    for name in ("left", "right"):
        studies[name] = replace(studies[name], steps=refuse)
    nothing = treft("study", "run", "all", *given, code=2)
    assert nothing.err.splitlines() == [
        *(f"left out {name}: it wants an organism." for name in studies),
        "error: none of the studies can run, each for the reason above.",
    ]


@pytest.mark.slow
def test_a_study_from_finetune_to_table_is_the_demos_and_stands(
    treft: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    store = tmp_path / "store"
    options = ("table3", *OPTIONS, "--store", store, "--json")
    told = treft("study", "run", *options, "--workers", 1, "--output", tmp_path / "out")
    assert told.json["num_done"] == 29
    assert told.json["verdict"].startswith("One run cannot tell")

    study = StudyConfig(num_seeds=1, settings=SMALL)
    demo = DemoConfig(tmp_path / "demo", ("sft", "interleaving", "treft"), study)
    ran = run_demo(demo, lambda *_: None, LocalPool(1)).runs
    expected = {one.row["method"]: one for one in ran}
    found = {row["method"]: row for row in read_table(tmp_path / "out" / "runs.parquet")}
    records = [json.loads(path.read_text()) for path in store.glob("*/step.json")]
    folders = {record["name"]: store / record["address"] for record in records}
    arms = {"sft": "sft", "interleaving": "interleaving", "treft_prefix": "treft"}
    for method, arm in arms.items():
        assert found[method]["general"] == expected[arm].row["general"]
        assert found[method]["in_domain"] == expected[arm].row["in_domain"]
        folder = folders[f"answer/embedded/seed-0/{method}/general"]
        answers = json.loads((folder / "answers.json").read_text())
        assert [row["answer"] for row in answers] == [
            one.answer for one in expected[arm].answers.sets["general"]
        ]
    metadata = read_metadata(tmp_path / "out" / "table.parquet")
    assert metadata["seeds"] == [0]
    assert metadata["machines"][0]["cores"] >= 1
    assert "treft.study.finetune:finetune" in metadata["sources"]
    weights = [path for path in store.rglob("*") if path.suffix in (".safetensors", ".bin", ".pt")]
    assert len(weights) == 7
    for path in weights:
        with safe_open(path, "pt") as file:
            assert any("lora_A" in name for name in file.keys())  # noqa: SIM118

    for path in weights:  # adapters may be removed: what was made from them stands
        shutil.rmtree(path.parents[1])
    again = treft("study", "run", *options)
    assert again.json["num_done"] == 0
    assert again.json["table"] == told.json["table"]
    states = [step["state"] for step in treft("study", "status", *options).json["steps"]]
    assert sorted(set(states)) == ["not needed", "stands"]
