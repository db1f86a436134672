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
        ({"kv_weight": "automatic"}, ConfigError, "or 'auto'; not 'automatic'"),
        ({"kv_weight": None}, ConfigError, "kv_weight"),
        ({"kv_weight": "auto", "kv_budget": 0.0}, ConfigError, "kv_budget must be a positive"),
        ({"kv_weight": "auto", "kv_budget": -0.1}, ConfigError, "kv_budget must be a positive"),
        ({"kv_weight": "auto", "kv_weight_start": 0.0}, ConfigError, "to start with"),
        ({"kv_weight": "auto", "kv_regions": []}, ConfigError, "kv_regions"),
        (
            {"kv_weight": 3.0, "kv_budget": 0.1},
            ConfigError,
            "kv_budget works with kv_weight='auto'",
        ),
        ({"kv_weight": 3.0, "kv_weight_start": 0.1}, ConfigError, "kv_weight_start works with"),
        ({"kv_region_weights": {"suffix": 1.0}}, ConfigError, "suffix"),
        ({"kv_region_weights": {"prefix": -1.0}}, ConfigError, "≥ 0"),
        ({"kv_region_weights": {"prefix": "much"}}, ConfigError, "much"),
        ({"kv_region_weights": "prefix=1"}, ConfigError, "numbers by region"),
        ({"kv_region_weights": {"postfix": 1.0}}, ConfigError, "held are prefix"),
        ({"kv_region_weights": {"prefix": 0.0}}, ConfigError, "not all of them 0"),
        ({"kv_regions": ["suffix"]}, ConfigError, "suffix"),
        ({"kv_regions": []}, ConfigError, "kv_regions"),
        ({"kv_states": "keys"}, ConfigError, "kv_states"),
        ({"kv_layers": []}, ConfigError, "kv_layers"),
        ({"kv_postfix_reference": "mean"}, ConfigError, "empty_query"),
        ({"kv_reference": "absent.safetensors"}, ConfigError, "absent.safetensors"),
        (
            {"kv_reference": __file__, "kv_regions": ["prefix", "postfix"]},
            ConfigError,
            "kv_postfix_reference='empty_query'",
        ),
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


def test_auto_and_region_weights_from_flags_and_yaml(tmp_path: Path) -> None:
    yaml_file = tmp_path / "run.yaml"
    yaml_file.write_text(
        f"output_dir: {tmp_path}\nuse_cpu: true\nkv_weight: auto\nkv_budget: 0.05\n"
        "kv_regions: [prefix, postfix]\nkv_region_weights: {prefix: 1, postfix: 0.3}\n"
    )
    parser = TrlParser((TReFTConfig,))
    (config,) = parser.parse_args_and_config(["--config", str(yaml_file)])
    assert (config.kv_weight, config.kv_budget) == ("auto", 0.05)
    assert config.kv_region_weights == {"prefix": 1.0, "postfix": 0.3}
    flags = ["--output_dir", str(tmp_path), "--use_cpu", "--kv_weight", "auto"]
    flags += ["--kv_weight_start", "5", "--kv_region_weights", '{"prefix": 2}']
    (config,) = TrlParser((TReFTConfig,)).parse_args_and_config(flags)
    assert config.kv_weight == "auto"
    assert config.kv_region_weights == {"prefix": 2.0}
    steering = config.auto_weight()
    assert steering is not None
    assert (steering.weight, steering.budget) == (5.0, 0.01)
    (plain,) = TrlParser((TReFTConfig,)).parse_args_and_config([*flags[:3], "--kv_weight", "7"])
    assert plain.kv_weight == 7.0
    assert plain.auto_weight() is None
    assert plain.holds
