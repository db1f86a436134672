"""`treft reference`: what is in the file, who may use it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from cli_helpers import WORDS, Command, Refused, user, write_rows
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
SHORT = ("--max-new-tokens", 6)
PREFIX = "<|im_start|>system\nYou are a tiny helper.<|im_end|>\n<|im_start|>user\n"


@pytest.fixture
def stored(folder: Path, treft: Command) -> Path:
    """The prefix of `base` in a file."""
    treft("reference", "record", "--model", folder / "base", "--output", folder / "ref.st")
    return folder / "ref.st"


def assert_holds(file: Path, model: Any, ids: list[int]) -> None:
    """The file's first entry is what a Transformers cache holds after the tokens."""
    found = load_file(file)
    cache = model(torch.tensor([ids]), use_cache=True).past_key_values
    for layer, states in enumerate(cache.layers):
        torch.testing.assert_close(found[f"0.{layer}.key"], states.keys[0])
        torch.testing.assert_close(found[f"0.{layer}.value"], states.values[0])


@torch.no_grad()
def test_the_file_holds_what_a_cache_holds(folder: Path, treft: Command, stored: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    ids = tokenizer(PREFIX, add_special_tokens=False)["input_ids"]
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    assert_holds(stored, base, ids)
    adapted = PeftModel.from_pretrained(base, folder / "adapter")
    before = ("--model", folder / "base", "--adapter", folder / "adapter")
    told = treft("reference", "record", *before, "--output", folder / "before.st", "--json")
    assert told.json["identity"]["adapter"]
    assert_holds(folder / "before.st", adapted, ids)


def test_inspect_shows_whose_states_they_are(folder: Path, treft: Command, stored: Path) -> None:
    named = ("--tokenizer", folder / "base")
    result = treft("reference", "inspect", stored, *named, "--json").json
    assert result["command"] == "reference"
    assert result["file"] == str(stored)
    assert result["bytes"] == stored.stat().st_size
    assert result["identity"]["model_id"] == "base"
    assert result["identity"]["num_layers"] == 2
    (entry,) = result["entries"]
    num = len(entry.pop("token_ids"))
    assert entry == {
        "num_tokens": num,
        "first_position": 0,
        "num_layers": 2,
        "shape": [2, num, 8],
        "dtype": "float32",
        "text": PREFIX,
    }
    shown = treft("reference", "inspect", stored, *named).out
    assert f"{num} tokens from position 0: {PREFIX!r}" in shown
    assert "1" in treft("reference", "inspect", stored).out


def test_each_distinct_prefix_and_postfix_of_the_rows_is_recorded(
    folder: Path, treft: Command
) -> None:
    rows = [
        {"messages": [{"role": "system", "content": system}, *row["messages"]]}
        for system in ("Be kind.", "Be brief.")
        for row in user("Yes?", "Yes?", WORDS[1])
    ]
    named = ("--input", write_rows(folder / "many.jsonl", rows), "--tokenizer", folder / "base")
    told = treft(
        "reference", "record", "--model", folder / "base", *named[:2], "--region", "prefix",
        "--region", "postfix", "--output", folder / "many.st", "--json",
    )  # fmt: skip
    entries = told.json["entries"]
    prefixes = [entry["text"] for entry in entries if entry["first_position"] == 0]
    assert len(prefixes) == 2
    assert "Be kind." in prefixes[0]
    assert "Be brief." in prefixes[1]
    postfixes = [entry for entry in entries if entry["first_position"] > 0]
    assert {entry["text"] for entry in postfixes} == {"<|im_end|>\n<|im_start|>assistant\n"}
    assert len(postfixes) == 4  # two lengths of query after each of two prefixes
    assert "recording" in told.err


@pytest.mark.parametrize("regions", [("prefix",), ("prefix", "postfix")])
def test_a_file_serves_as_the_model_it_was_recorded_from(
    folder: Path, treft: Command, regions: tuple[str, ...]
) -> None:
    rows = ("--input", folder / "rows.jsonl")
    recorded = [part for region in regions for part in ("--region", region)]
    file = ("--output", folder / "r.st")
    # Up to the words that will be asked; the answer that ends a row changes nothing before it.
    treft("reference", "record", "--model", folder / "base", *rows, *recorded, *file)
    patched = [part for region in regions for part in ("--patch", region)]
    asked = (*patched, *rows, *SHORT, "--json")
    for model in ("adapter", "tuned"):
        ask = ("generate", "--model", folder / model, *asked)
        expected = treft(*ask, "--base", folder / "base").json["answers"]
        assert treft(*ask, "--reference", folder / "r.st").json["answers"] == expected


def test_a_reference_of_another_model_is_refused(
    folder: Path, treft: Command, refused: Refused
) -> None:
    other = folder / "other.st"
    treft("reference", "record", "--model", folder / "other", "--output", other)
    ask = ("--patch", "prefix", "--prompt", WORDS[0])
    line = refused("generate", "--model", folder / "adapter", "--reference", other, *ask)
    assert "weights" in line
    assert "model_id: other, not base" in line


def test_a_reference_in_another_precision_is_refused(
    folder: Path, treft: Command, refused: Refused
) -> None:
    low = folder / "low.st"
    recorded = ("--model", folder / "base", "--output", low, "--dtype", "bfloat16", "--json")
    assert treft("reference", "record", *recorded).json["entries"][0]["dtype"] == "bfloat16"
    ask = ("--patch", "prefix", "--prompt", WORDS[0])
    line = refused("generate", "--model", folder / "tuned", "--reference", low, *ask)
    assert "dtype: bfloat16, not float32" in line


def test_a_reference_of_another_template_is_refused(
    folder: Path, stored: Path, refused: Refused
) -> None:
    ask = ("--patch", "prefix", "--prompt", WORDS[0], "--reference", stored)
    template = (folder / "base" / "chat_template.jinja").read_text()
    (folder / "same_prefix.jinja").write_text(template + " ")
    chosen = ("--template", folder / "same_prefix.jinja")
    line = refused("generate", "--model", folder / "adapter", *ask, *chosen)
    assert "template_hash" in line


def test_a_prompt_that_was_not_recorded_is_refused(
    folder: Path, stored: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    ask = ("generate", "--model", folder / "adapter", "--reference", stored, "--prompt", WORDS[0])
    assert "holds no states" in refused(*ask, "--patch", "prefix", "--system", "Be kind.")
    assert "holds no states" in refused(*ask, "--patch", "query")


def test_files_that_are_no_references(folder: Path, refused: Refused, stored: Path) -> None:
    weights = folder / "base" / "model.safetensors"
    assert "no treft reference" in refused("reference", "inspect", weights)
    assert "cannot be read" in refused("reference", "inspect", folder / "nothing.st")
    stored.write_bytes(stored.read_bytes()[:200])
    assert "cannot be read" in refused("reference", "inspect", stored)


def test_bad_options(folder: Path, stored: Path, treft: Command, refused: Refused) -> None:
    before = stored.read_bytes()
    record = ("reference", "record", "--model", folder / "base", "--output", stored)
    assert "--overwrite" in refused(*record)
    assert stored.read_bytes() == before
    treft(*record, "--overwrite", "--system", "Be kind.")
    assert stored.read_bytes() != before
    assert "not query" in refused(*record, "--region", "query")
    assert "--input" in refused(*record, "--region", "postfix")
    rows = ("--input", folder / "rows.jsonl")
    assert "rows of a file" in refused(*record, "--overwrite", *rows, "--system", "Be kind.")
    (folder / "bad.jsonl").write_text('{"messages": [\n')
    line = refused(*record, "--overwrite", "--input", folder / "bad.jsonl")
    assert f"{folder / 'bad.jsonl'}, row 1" in line


def test_training_holds_to_a_recorded_reference_though_trl_marks_the_template(
    folder: Path, treft: Command, refused: Refused
) -> None:
    """Assistant-only loss swaps the template for a twin with generation markers."""
    template = (TEMPLATES / "qwen2_5.jinja").read_text()
    assert "{% generation %}" not in template
    (folder / "base" / "chat_template.jinja").write_text(template)
    for name in ("base", "other"):
        recorded = ("--model", folder / name, "--output", folder / f"{name}.st")
        treft("reference", "record", *recorded, *(
            ("--template", TEMPLATES / "qwen2_5.jinja") if name == "other" else ()
        ))  # fmt: skip
    rows = user(*WORDS)
    for row in rows:
        row["messages"].append({"role": "assistant", "content": "It is."})
    train = (
        "sft", "--model_name_or_path", folder / "base", "--use_peft", "--assistant_only_loss",
        "--train_file", write_rows(folder / "train.jsonl", rows), "--max_steps", 1, "--bf16",
        "false", "--report_to", "none", "--save_strategy", "no", "--output_dir", folder / "out",
        "--json",
    )  # fmt: skip
    told = treft(*train, "--kv_reference", folder / "base.st")
    assert told.json["reference"] == "stored"
    assert told.json["kv_penalty"] == pytest.approx(0, abs=1e-9)
    again = (*train, "--output_dir", folder / "out2")
    assert treft(*again, "--kv_reference", folder / "other.st", code=2).out == ""
