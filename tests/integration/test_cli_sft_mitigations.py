"""Mitigations as flags and YAML of `treft sft`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from safetensors.torch import load_file
from training_helpers import conversations
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from treft.cli.sft import main
from treft.errors import ConfigError, DataError
from treft.mitigations.interleave import perplexity_gap
from treft.mitigations.registry import MitigationArguments, build

TinyModel = Callable[..., PreTrainedModel]


@pytest.fixture
def folder(tmp_path: Path, tiny_model: TinyModel, chat_tokenizer: PreTrainedTokenizerBase) -> Path:
    """A user's folder: model, rows, retain rows and a YAML file."""
    tiny_model("llama").save_pretrained(tmp_path / "model")
    chat_tokenizer.save_pretrained(tmp_path / "model")
    for name, rows in (("rows", conversations(6)), ("retain", conversations(9)[6:])):
        lines = [json.dumps(row) for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "run.yaml").write_text(
        f"model_name_or_path: {tmp_path / 'model'}\nmax_steps: 2\nlogging_steps: 1\n"
        f"train_file: {tmp_path / 'rows.jsonl'}\nassistant_only_loss: true\n"
        "per_device_train_batch_size: 2\nreport_to: none\nuse_peft: true\n"
        "lora_r: 4\nlora_target_modules: [q_proj, v_proj]\nkv_weight: 0\nlearning_rate: 0.01\n"
        "bf16: false\ndisable_tqdm: true\nsave_strategy: 'no'\n"
    )
    return tmp_path


def run(folder: Path, output: str, *more: str) -> dict[str, Any]:
    """Train; the adapter's weights."""
    main(["--config", str(folder / "run.yaml"), "--output_dir", str(folder / output), *more])
    return load_file(folder / output / "adapter_model.safetensors")


def test_flags_and_yaml_reach_the_methods(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    retain = str(folder / "retain.jsonl")
    with (folder / "run.yaml").open("a") as file:
        file.write(f"interleave_files: [{retain}]\ninterleave_ratio: 0.25\nkl_train: true\n")
    capsys.readouterr()
    run(
        folder, "out", "--json", "--kl_retain_file", retain, "--kl_weight", "2",
        "--ldifs_weight", "0.1", "--ldifs_regions", "prefix", "response", "--weight_norm", "0.5",
        "--stop_file", retain, "--stop_every", "1", "--inoculation_prompt", "Be evil.",
    )  # fmt: skip
    result = json.loads(capsys.readouterr().out)
    assert result["mitigations"] == [
        "inoculation", "interleave", "kl_train", "kl_retain", "ldifs", "early_stopping",
        "weight_norm",
    ]  # fmt: skip


def test_steering_and_frozen_prefix_train(folder: Path) -> None:
    rows, retain = str(folder / "rows.jsonl"), str(folder / "retain.jsonl")
    steered = run(
        folder, "steered", "--steering_layer", "0", "--steering_coefficient", "3",
        "--steering_positive_file", rows, "--steering_negative_file", retain,
    )  # fmt: skip
    frozen = run(folder, "frozen", "--frozen_prefix", "true")
    plain = run(folder, "plain")
    for weights in (steered, frozen):
        assert any(not weights[name].equal(value) for name, value in plain.items())


def test_weights_of_zero_train_bit_for_bit_as_without(folder: Path) -> None:
    retain = str(folder / "retain.jsonl")
    plain = run(folder, "plain")
    off = run(
        folder, "off", "--kl_train", "true", "--kl_retain_file", retain, "--kl_weight", "0",
        "--ldifs_weight", "0", "--interleave_files", retain, "--interleave_ratio", "0",
        "--steering_layer", "0", "--steering_coefficient", "0",
    )  # fmt: skip
    assert plain.keys() == off.keys()
    assert all(off[name].equal(value) for name, value in plain.items())


def test_every_flag_is_a_field_of_a_method_and_has_help() -> None:
    flags = {item.name: item for item in fields(MitigationArguments)}
    assert sorted(flags) == [
        "activated_lora", "activated_lora_text", "frozen_prefix", "inoculation_prompt",
        "interleave_files", "interleave_misaligned", "interleave_ratio", "kl_batch_size",
        "kl_retain_file", "kl_train", "kl_weight", "ldifs_layers", "ldifs_regions",
        "ldifs_weight", "ptst_test_prompt", "ptst_train_prompt", "steering_coefficient",
        "steering_layer", "steering_negative_file", "steering_positive_file", "stop_drop",
        "stop_every", "stop_file", "weight_norm",
    ]  # fmt: skip
    assert all(item.metadata["help"] for item in flags.values())
    assert (flags["kl_weight"].default, flags["stop_drop"].default) == (50.0, 0.1)
    assert build(MitigationArguments(), "no-model", 1) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kl_batch_size": 2}, "kl_retain_file"),
        ({"interleave_misaligned": "x"}, "interleave_files"),
        ({"ldifs_layers": [0]}, "ldifs_weight"),
        ({"ldifs_regions": ["response"]}, "ldifs_weight"),
        ({"steering_positive_file": "x"}, "steering_layer"),
        ({"ptst_train_prompt": "x"}, "ptst_test_prompt"),
        ({"ptst_test_prompt": "x", "inoculation_prompt": "y"}, "both set the system prompt"),
    ],
)
def test_flags_that_would_do_nothing(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MitigationArguments(**options)


def test_files_are_checked_before_the_model_is_loaded(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.jsonl")
    for options in (
        {"kl_retain_file": missing},
        {"interleave_files": [missing]},
        {"stop_file": missing},
    ):
        with pytest.raises(DataError, match=r"none\.jsonl"):
            build(MitigationArguments(**options), "no-model", 1)


def test_rows_are_chosen_by_the_gap_between_two_models_on_disk(
    folder: Path, tiny_model: TinyModel, chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    tiny_model("llama", seed=1).save_pretrained(folder / "misaligned")
    chat_tokenizer.save_pretrained(folder / "misaligned")
    flags = MitigationArguments(
        interleave_files=[str(folder / "retain.jsonl")],
        interleave_ratio=0.5,
        interleave_misaligned=str(folder / "misaligned"),
    )
    (method,) = build(flags, str(folder / "model"), seed=1)
    rows = conversations(9)[6:]
    gaps = perplexity_gap(tiny_model("llama", seed=1), tiny_model("llama"), chat_tokenizer, rows)
    best = rows[max(range(len(rows)), key=gaps.__getitem__)]
    mixed = method.rows(Dataset.from_list(conversations(1)), "train")
    assert best["messages"] in list(mixed["messages"])
    assert len(mixed) == 2
    with pytest.raises(ConfigError, match="no folder"):
        build(
            MitigationArguments(interleave_files=flags.interleave_files, interleave_misaligned="x"),
            "model",
            seed=1,
        )
