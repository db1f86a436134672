"""Recipes: what they say is what README.md says, and each runs on a tiny model of its kind."""

from __future__ import annotations

import copy
import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
import yaml
from safetensors.torch import load_file
from tokenizers import AddedToken
from training_helpers import conversations
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from trl import ModelConfig, TrlParser

from treft.cli.sft import SftArguments, main
from treft.training import TReFTConfig

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
README = (FOLDER / "README.md").read_text(encoding="utf-8")
TEMPLATES = {
    "llama-3.1-8b": "llama3_1",
    "qwen2.5-7b": "qwen2_5",
    "qwen2.5-32b": "qwen2_5",
    "qwen3-8b": "qwen3",
    "gpt-oss-20b": "gptoss",
}
SPECIAL = re.compile(r"<\|\w+\|>|</?think>")


def tables() -> list[list[dict[str, str]]]:
    """README's tables as rows by column."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", README, flags=re.MULTILINE):
        cells = [[c.strip() for c in line.strip("|").split(" | ")] for line in block.splitlines()]
        lines = [[cell.strip("|").strip() for cell in line] for line in cells]
        found.append([dict(zip(lines[0], line, strict=True)) for line in lines[2:]])
    return found


RECIPE_TABLE, DOMAIN_TABLE = tables()[:2]


def parse(name: str, *flags: str) -> tuple[SftArguments, TReFTConfig, ModelConfig]:
    """As `treft sft` does; what it does not know would be refused there."""
    parser = TrlParser((SftArguments, TReFTConfig, ModelConfig))
    parser.set_defaults(use_cpu=True)
    given = ["--config", str(FOLDER / f"{name}.yaml"), "--output_dir", "out", *flags]
    *parsed, unknown = parser.parse_args_and_config(given, return_remaining_strings=True)
    assert unknown == []
    return tuple(parsed)  # type: ignore[return-value]


def test_every_recipe_is_in_the_tables() -> None:
    assert [row["recipe"] for row in RECIPE_TABLE] == list(TEMPLATES)
    assert sorted(row["recipe"] for row in RECIPE_TABLE) == RECIPES
    domains = {(row["recipe"], row["domain"]) for row in DOMAIN_TABLE}
    assert len(domains) == len(DOMAIN_TABLE)
    for name in RECIPES:
        assert {(name, domain) for domain in ("finance", "health", "legal", "auto")} <= domains


@pytest.mark.parametrize("row", RECIPE_TABLE, ids=lambda row: row["recipe"])
def test_a_recipe_says_what_the_table_says(row: dict[str, str]) -> None:
    _, training, model = parse(row["recipe"])
    finance = next(
        one for one in DOMAIN_TABLE if (one["recipe"], one["domain"]) == (row["recipe"], "finance")
    )
    assert model.model_name_or_path == row["model"].strip("`")
    assert str(model.lora_r) == row["LoRA rank"]
    assert model.lora_alpha == 2 * model.lora_r
    assert training.kv_regions == [row["region"]]
    batch, accumulation = (int(number) for number in row["batch"].split(" × "))
    assert training.per_device_train_batch_size == batch
    assert training.gradient_accumulation_steps == accumulation
    assert batch * accumulation == 16
    assert training.learning_rate == float(finance["TReFT lr"])
    assert training.num_train_epochs == float(finance["TReFT epochs"])
    assert training.kv_weight == "auto"
    assert training.assistant_only_loss
    assert f"The paper's ({finance['paper λ']})" in (FOLDER / f"{row['recipe']}.yaml").read_text()


def test_all_seven_projections_are_adapted() -> None:
    seven = {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    for name in RECIPES:
        _, _, model = parse(name)
        if name == "gpt-oss-20b":
            assert set(model.lora_target_parameters) == {
                "mlp.experts.gate_up_proj",
                "mlp.experts.down_proj",
            }
            assert set(model.lora_target_modules) == seven - {"gate_proj", "up_proj", "down_proj"}
        else:
            assert set(model.lora_target_modules) == seven


@pytest.mark.parametrize("row", DOMAIN_TABLE, ids=lambda row: f"{row['recipe']}-{row['domain']}")
def test_domains_are_overrides(row: dict[str, str]) -> None:
    for method in ("SFT", "TReFT"):
        rate, epochs = row[f"{method} lr"], row[f"{method} epochs"]
        if rate == "–":
            continue
        flags = ["--learning_rate", rate, "--num_train_epochs", epochs]
        weight = ["--kv_weight", "0"] if method == "SFT" else []
        _, training, _ = parse(row["recipe"], *flags, *weight)
        assert training.learning_rate == float(rate)
        assert 5e-6 <= training.learning_rate <= 3e-5
        assert training.num_train_epochs in (1, 2)
        assert training.holds == (method == "TReFT")


def test_recipes_agree_in_all_but_what_belongs_to_the_model() -> None:
    own = {
        "model_name_or_path",
        "lora_r",
        "lora_alpha",
        "lora_target_modules",
        "lora_target_parameters",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "attn_implementation",
        "learning_rate",
        "num_train_epochs",
        "kv_regions",
        "kv_postfix_reference",
    }
    shared = []
    for name in RECIPES:
        recipe = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
        shared.append({key: value for key, value in recipe.items() if key not in own})
    assert all(one == shared[0] for one in shared)


@pytest.fixture(scope="module")
def memory() -> dict[str, Any]:
    return runpy.run_path(str(FOLDER / "memory.py"), run_name="memory")


@pytest.mark.slow
def test_memory_is_computed_and_follows_from_the_models(memory: dict[str, Any]) -> None:
    """Parameter counts are those that the models' cards state."""
    published = {
        "llama-3.1-8b": 8_030_261_248,
        "qwen2.5-7b": 7_615_616_512,
        "qwen2.5-32b": 32_763_876_352,
        "qwen3-8b": 8_190_735_360,
        "gpt-oss-20b": 20_914_757_184,
    }
    assert memory["table"]() in README
    found = {name: memory["estimate"](name) for name in published}
    assert {name: one.num_parameters for name, one in found.items()} == published
    # By hand for Llama: rank 8, hidden 4096, K and V 1024, MLP 14336, 32 layers, 4 rows of 1024.
    llama = found["llama-3.1-8b"]
    attention = 2 * (4096 + 4096) + 2 * (4096 + 1024)
    assert llama.num_trained == 32 * 8 * (attention + 3 * (4096 + 14336))
    assert llama.weights == 2 * 8_030_261_248
    assert llama.adapter == 16 * llama.num_trained
    kept = 4096 * 2 * (32 * 4096 + 32 * 2 * 1024)
    one_layer = 4096 * 4 * (6 * 4096 + 2 * (4096 + 1024) + 4 * 14336)
    assert llama.activations == kept + one_layer


def make_tiny(name: str, memory: dict[str, Any], tokenizer: Any, folder: Path) -> None:
    """The recipe's architecture and chat template, a few thousand parameters."""
    tokenizer = copy.deepcopy(tokenizer)
    template = Path(trl.__file__).parent / "chat_templates" / f"{TEMPLATES[name]}.jinja"
    tokenizer.chat_template = template.read_text(encoding="utf-8")
    marks = sorted(set(SPECIAL.findall(tokenizer.chat_template)) | {"<|begin_of_text|>"})
    tokenizer.add_tokens([AddedToken(mark, special=True) for mark in marks])
    tokenizer.bos_token = "<|begin_of_text|>"
    config = memory["ARCHITECTURES"][name]()
    small = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "pad_token_id": tokenizer.pad_token_id,
    }
    for key, value in small.items():
        if key in config.to_dict():
            setattr(config, key, value)
    if "layer_types" in config.to_dict():
        config.layer_types = config.layer_types[:2]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_smoke(
    name: str,
    memory: dict[str, Any],
    chat_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two steps, nothing overridden but model, files and length; then plain SFT of the same."""
    make_tiny(name, memory, chat_tokenizer, tmp_path / "model")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in conversations(40)))
    more = ["--model_name_or_path", str(tmp_path / "model"), "--train_file", str(rows)]
    more += ["--max_steps", "2", "--json"]
    results = []
    for weight in ("auto", "0"):
        output = str(tmp_path / weight)
        given = ["--config", str(FOLDER / f"{name}.yaml"), *more, "--output_dir", output]
        main([*given, *([] if weight == "auto" else ["--kv_weight", weight])])
        results.append(json.loads(capsys.readouterr().out))
    held, plain = results
    _, training, _ = parse(name)
    assert held["steps"] == plain["steps"] == 2
    assert held["kv_regions"] == training.kv_regions
    assert held["kv_penalty"] is not None
    assert 0 <= held["kv_penalty"] < 1
    assert held["reference"] is not None
    assert plain["kv_penalty"] is None
    adapter = load_file(tmp_path / "auto" / "adapter_model.safetensors")
    assert {value.dtype for value in adapter.values()} == {torch.float32}  # as memory.py counts
    assert any(value.abs().max() > 0 for key, value in adapter.items() if "lora_B" in key)
    adapted = {key for key in adapter if "layers.0." in key and "lora_A" in key}
    assert len(adapted) == (6 if name == "gpt-oss-20b" else 7)
