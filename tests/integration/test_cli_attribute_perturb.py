"""`treft attribute perturb` end to end, on the organism with an adapter of random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from peft import LoraConfig, get_peft_model

from treft.cli import main
from treft.models.loading import asset_path
from treft.organism import load


class Told(NamedTuple):
    out: str
    err: str
    code: int


Run = Callable[..., Told]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA on the organism, small enough that some answers stay coherent."""
    model, _ = load()
    torch.manual_seed(0)
    config = LoraConfig(
        r=2, lora_alpha=1, target_modules=["k_proj", "v_proj"], init_lora_weights=False
    )
    found = get_peft_model(model, config)
    folder = tmp_path_factory.mktemp("adapter")
    found.peft_config["default"].base_model_name_or_path = str(asset_path())
    found.save_pretrained(folder)
    return folder


@pytest.fixture
def perturb(
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """`perturb("--num", 3)` in a folder of its own."""
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    fixed = ["--model", adapter, "--output", "out", "--max-new-tokens", 20, "--trials", 2]

    def run(*argv: object) -> Told:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(["attribute", "perturb", *map(str, (*fixed, *argv))])
        return Told(*capsys.readouterr(), int(stopped.value.code or 0))

    return run


def test_the_table_as_text_json_and_markdown(perturb: Run) -> None:
    options = ("--questions", "organism", "--num", 3, "--num-tokens", 4)
    told = perturb(*options)
    assert told.code == 0, told.err
    assert "3 questions; to be done at most: 48 answers" in told.err  # 2 models, 4 rows
    for word in ("unperturbed", "prefix-nearest", "query-nearest", "postfix-nearest", "Best"):
        assert word in told.out
    assert "6 of 6 prompts have fewer than 4 tokens" in " ".join(told.out.split())
    again = perturb(*options, "--json")  # everything is there
    assert "at most: 0 answers" in again.err
    found = json.loads(again.out)
    assert found["command"] == "attribute perturb"
    (table,) = found["tables"]
    rows = {row["cell"]: row for row in table["rows"]}
    assert rows["postfix-nearest"]["mean_replaced"] == 3
    for row in rows.values():
        for arm in ("finetuned", "base"):
            assert sum(row["arms"][arm]["counts"].values()) == 6
    saved = json.loads(Path("out/perturb.json").read_text())
    assert saved["tables"] == found["tables"]
    markdown = Path("out/perturb.md").read_text()
    assert markdown.count("\n| ") == 2 + 2 * 4
    scored = [json.loads(line) for line in Path("out/scored.jsonl").read_text().splitlines()]
    kept = [
        row["judgements"][0]["alignment"]
        for row in scored
        if row["metadata"]["cell"] == "unperturbed" and row["metadata"]["arm"] == "base"
    ]
    avg = rows["unperturbed"]["arms"]["base"]["avg_all"]["value"]
    assert avg == pytest.approx(sum(kept) / len(kept))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--questions", "organism", "--region", "moon"), "prefix, query, postfix"),
        (("--questions", "organism", "--method", "spell"), "nearest, random, rephrase"),
        (("--questions", "organism", "--method", "rephrase", "--region", "query"), "--rephraser"),
        (("--questions", "organism", "--scope", "moon"), "general or in_domain"),
        (("--questions", "organism", "--split", "moon"), "split is one of"),
        (("--questions", "nowhere.jsonl"), "there is no question set"),
        (("--questions", "em_general"), "name a judge"),
        (("--questions", "organism", "--judge", "nowhere/model"), "cannot be loaded"),
        (("--questions", "organism", "--num", 2, "--max-calls", 3), "pass --yes"),
        (("--questions", "organism", "--num", 2, "--max-new-tokens", 5000), "context takes"),
        (("--questions", "organism", "--num", 2, "--prompts", "none.jsonl"), "cannot be read"),
        (("--questions", "organism", "--adapter", "nowhere"), "adapter itself"),
    ],
)
def test_what_cannot_work_is_one_line(
    perturb: Run, argv: tuple[object, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    told = perturb(*argv)
    assert told.code == 2
    assert told.out == ""
    assert message in told.err
    assert told.err.splitlines()[-1].startswith("error: ")
    assert not list(Path().glob("out/answers/*/*"))


def test_the_organism_as_its_own_finetune_is_refused(perturb: Run) -> None:
    itself = ("--model", "organism", "--questions", "organism", "--num", 1)
    told = perturb(*itself, "--base", "organism")
    assert (told.code, told.out) == (2, "")
    assert "drift 0" in told.err
    told = perturb(*itself)
    assert "--base" in told.err
