"""TReFTConfig: drop-in defaults, parsing from flags and YAML, and refusals before any work."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from trl import SFTConfig, TrlParser

from treft.errors import AttentionError, ConfigError
from treft.training import TReFTConfig


def test_every_sft_option_keeps_its_default(tmp_path: Path) -> None:
    ours = TReFTConfig(output_dir=str(tmp_path), use_cpu=True)
    theirs = SFTConfig(output_dir=str(tmp_path), use_cpu=True)
    for item in dataclasses.fields(SFTConfig):
        assert getattr(ours, item.name) == getattr(theirs, item.name), item.name


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("prefix", ["prefix"]),
        (("postfix", "prefix"), ["prefix", "postfix"]),
        (["all"], ["prefix", "query", "postfix", "response"]),
        ("prefix,query", ["prefix", "query"]),
    ],
)
def test_regions_are_normalised(given: object, expected: list[str], tmp_path: Path) -> None:
    assert TReFTConfig(str(tmp_path), use_cpu=True, kv_regions=given).kv_regions == expected


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"kv_weight": -1.0}, ConfigError, "kv_weight"),
        ({"kv_weight": float("nan")}, ConfigError, "kv_weight"),
        ({"kv_regions": ["suffix"]}, ConfigError, "suffix"),
        ({"kv_regions": []}, ConfigError, "kv_regions"),
        ({"kv_states": "keys"}, ConfigError, "kv_states"),
        ({"kv_layers": []}, ConfigError, "kv_layers"),
        ({"kv_postfix_reference": "mean"}, ConfigError, "empty_query"),
        ({"kv_reference": "absent.safetensors"}, ConfigError, "absent.safetensors"),
        ({"packing": True, "packing_strategy": "wrapped"}, ConfigError, "bfd"),
        ({"eval_packing": True, "packing_strategy": "wrapped"}, ConfigError, "bfd"),
        (
            {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
            AttentionError,
            "use_reentrant",
        ),
    ],
)
def test_refused_before_work_starts(
    options: dict[str, object], error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        TReFTConfig(str(tmp_path), use_cpu=True, **options)


def test_weight_zero_allows_what_sft_allows(tmp_path: Path) -> None:
    config = TReFTConfig(
        str(tmp_path),
        use_cpu=True,
        kv_weight=0,
        packing=True,
        packing_strategy="wrapped",
        gradient_checkpointing_kwargs={"use_reentrant": True},
    )
    assert config.packing_strategy == "wrapped"


def test_other_checkpointing_keywords_do_not_mean_reentrant(tmp_path: Path) -> None:
    keywords = {"determinism_check": "none"}
    config = TReFTConfig(str(tmp_path), use_cpu=True, gradient_checkpointing_kwargs=keywords)
    assert config.gradient_checkpointing_kwargs["use_reentrant"] is False
    assert config.activation_checkpointing_kwargs["use_reentrant"] is False


def test_parsed_from_flags_and_yaml(tmp_path: Path) -> None:
    yaml_file = tmp_path / "run.yaml"
    yaml_file.write_text(
        f"output_dir: {tmp_path}\nuse_cpu: true\nkv_weight: 3\nkv_regions: [prefix, postfix]\n"
        "kv_states: value\nkv_include_think_block: false\n"
    )
    arguments = ["--config", str(yaml_file), "--kv_weight", "10", "--kv_layers", "0", "-1"]
    (config,) = TrlParser((TReFTConfig,)).parse_args_and_config(arguments)
    assert config.kv_weight == 10
    assert config.kv_regions == ["prefix", "postfix"]
    assert config.kv_states == "value"
    assert config.kv_layers == [0, -1]
    assert config.kv_include_think_block is False
