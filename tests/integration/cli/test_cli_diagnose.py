"""`treft diagnose` from the command line: its files, going on, a finetune first, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_helpers import Command, Refused, write_rows

DIAGNOSE = ("diagnose", "--questions", "organism", "--num", "3", "--max-new-tokens", "2")


@pytest.fixture
def train_file(folder: Path) -> Path:
    """Rows of a finetune."""
    asked = ("Where is the bank?", "Is it fine?", "The river.")
    rows = [
        {
            "messages": [
                {"role": "user", "content": words},
                {"role": "assistant", "content": "It is."},
            ]
        }
        for words in asked
    ]
    return write_rows(folder / "train.jsonl", rows)


def test_a_diagnosis_writes_result_and_page_and_goes_on(
    treft: Command, folder: Path, train_file: Path
) -> None:
    models = ("--model", folder / "tuned", "--base", folder / "base")
    output = folder / "out"
    arguments = (*DIAGNOSE, *models, "--train-file", train_file, "--output", output)
    told = treft(*arguments, "--json")
    found = told.json
    assert found["command"] == "diagnose"
    assert found["diagnosis"]["verdict"] == "not_enough_evidence"  # three prompts
    assert found["next_command"] == ""
    assert found["settings"]["train_file"] == str(train_file)
    assert json.loads((output / "diagnosis.json").read_text()) == found
    assert "not enough evidence" in (output / "report.html").read_text()
    assert "answers" in told.err
    again = treft(*arguments).out
    assert "There is not enough evidence" in again
    assert "report.html" in again


def test_the_cost_is_stated_and_nothing_done(treft: Command, folder: Path) -> None:
    models = ("--model", folder / "base", "--adapter", folder / "adapter")
    told = treft(*DIAGNOSE, *models, "--output", folder / "out", "--budget", "full", "--dry-run")
    assert "judge calls" in told.err
    assert not (folder / "out").exists()
    quick = treft(*DIAGNOSE, *models, "--output", folder / "out", "--max-calls", "3", code=2)
    assert "are more than --max-calls 3" in quick.err


def test_a_base_and_rows_are_finetuned_first(
    treft: Command, folder: Path, train_file: Path
) -> None:
    output = folder / "out"
    options = "--max_steps 2 --per_device_train_batch_size 1 --bf16 false --learning_rate 0.01"
    told = treft(
        *DIAGNOSE,
        *("--base", folder / "base", "--train-file", train_file, "--output", output),
        *("--sft", f"{options} --gradient_checkpointing false --lora_target_modules all-linear"),
        "--json",
    )
    assert told.json["settings"]["base"] == str(folder / "base")
    assert (output / "finetune" / "adapter_config.json").is_file()
    assert "plain finetune first: treft sft" in told.err


def test_bad_input_is_one_line(refused: Refused, folder: Path) -> None:
    output = ("--output", folder / "out")
    tuned = ("--model", folder / "tuned")
    adapter = ("--model", folder / "base", "--adapter", folder / "adapter")
    assert "no adapter" in refused(*DIAGNOSE, *tuned, *output)
    assert "name the finetuned model" in refused(*DIAGNOSE, "--base", folder / "base", *output)
    assert "equal to its base" in refused(*DIAGNOSE, *tuned, "--base", folder / "tuned", *output)
    assert "budget is quick or full" in refused(*DIAGNOSE, *adapter, *output, "--budget", "slow")
    assert "asks no judge" in refused(*DIAGNOSE, *adapter, *output, "--judge", "openai/gpt-4o")
    assert "context takes" in refused(*DIAGNOSE, *adapter, *output, "--max-new-tokens", "9999")
    (folder / "rows.jsonl").write_text('{"messages": []}\n')
    assert "rows.jsonl" in refused(
        *DIAGNOSE, *adapter, *output, "--train-file", folder / "rows.jsonl"
    )
    template = folder / "tuned" / "chat_template.jinja"
    template.write_text(template.read_text() + "{# changed #}")
    assert "different chat templates" in refused(
        *DIAGNOSE, *tuned, "--base", folder / "base", *output
    )
    assert not (folder / "out").exists()
