"""The reference is the model before this finetune, however that trains and however it goes on."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from training_helpers import LORA, conversations, entries, trained
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from treft.chat.regions import find_regions
from treft.core.reference import ReferenceBank
from treft.errors import ConfigError, ReferenceMismatchError
from treft.models.adapters import KEPT_ADAPTER
from treft.training import TReFTTrainer
from treft.training.reference_source import REFERENCE_FILE, RUN_FILE

MakeTrainer = Callable[..., TReFTTrainer]
TinyModel = Callable[..., PreTrainedModel]
SYSTEMS = (None, "Be brief.", "You know every bank and every river.")


def cached_states(model: torch.nn.Module, ids: Sequence[int]) -> list[tuple[Any, Any]]:
    """(key, value) of each layer, (H, T, D) in float64, from the cache of a forward."""
    with torch.no_grad():
        cache = model.eval()(torch.tensor([ids]), use_cache=True).past_key_values
    return [(layer.keys[0].double(), layer.values[0].double()) for layer in cache.layers]


def equation_3(
    model: torch.nn.Module,
    before: torch.nn.Module,
    rows: list[dict[str, Any]],
    tokenizer: Any,
    regions: Sequence[str],
) -> float:
    """L_KV from whole conversations in both models; their prefixes and queries are their own."""
    penalties = []
    for row in rows:
        chat = find_regions(tokenizer, row["messages"])
        kept = sorted(index for region in regions for index in chat.positions(region))
        total = torch.zeros((), dtype=torch.float64)
        now, then = cached_states(model, chat.input_ids), cached_states(before, chat.input_ids)
        for pair, reference_pair in zip(now, then, strict=True):
            for states, reference in zip(pair, reference_pair, strict=True):
                moved = (states - reference)[:, kept].square().sum(dim=(0, 2))
                total += (moved / reference[:, kept].square().sum(dim=(0, 2))).mean()
        penalties.append(float(total) / len(now))
    return sum(penalties) / len(penalties)


def adapted(model: PreTrainedModel, seed: int = 3) -> PeftModel:
    """A model whose adapter has learnt something already."""
    peft_model = get_peft_model(model, LoraConfig(**LORA))
    generator = torch.Generator().manual_seed(seed)
    for name, value in sorted(peft_model.named_parameters()):
        if "lora_B" in name:
            value.data.normal_(0.0, 0.3, generator=generator)
    return peft_model


@pytest.mark.parametrize(
    ("regions", "kind"), [(["prefix"], "snapshot"), (["prefix", "query"], "kept_model")]
)
def test_all_weights(
    regions: list[str],
    kind: str,
    tiny_model: TinyModel,
    make_trainer: MakeTrainer,
    chat_tokenizer: PreTrainedTokenizerBase,
) -> None:
    model = tiny_model("llama")
    before = copy.deepcopy(model)
    rows = conversations(6, SYSTEMS)
    trainer = make_trainer(
        model,
        rows,
        lora=False,
        kv_regions=regions,
        learning_rate=3e-3,
        trainer={"eval_dataset": Dataset.from_list(rows)},
    )
    assert trainer.reference_kind == kind
    assert trainer.evaluate()["eval_kv_penalty"] == pytest.approx(0, abs=1e-9)
    trainer.train()
    assert entries(trainer, "kv_penalty")[0] == pytest.approx(0, abs=1e-9)
    found = trainer.evaluate()["eval_kv_penalty"]
    expected = equation_3(_plain_forward(model), before, rows, chat_tokenizer, regions)
    assert expected > 1e-3
    assert found == pytest.approx(expected, rel=1e-3)


def _plain_forward(model: PreTrainedModel) -> PreTrainedModel:
    """A copy without the forwards that TRL and Accelerate put on the instance."""
    plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict())
    return plain


def test_each_prompt_has_its_own_snapshot(
    tiny_model: TinyModel, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer = make_trainer(tiny_model("llama"), conversations(9, SYSTEMS), lora=False)
    trainer.train()
    bank = ReferenceBank.load(tmp_path / "run" / REFERENCE_FILE)
    assert len(bank) == len(SYSTEMS)
    assert len({request.token_ids for request in bank}) == len(SYSTEMS)


def test_an_adapter_trained_further_is_held_to_itself(
    tiny_model: TinyModel, make_trainer: MakeTrainer, chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    model = adapted(tiny_model("llama"))
    before = copy.deepcopy(model)
    start = {name: value.clone() for name, value in before.named_parameters()}
    rows = conversations(4)
    trainer = make_trainer(
        model,
        rows,
        lora=False,
        kv_regions=["prefix", "query"],
        trainer={"eval_dataset": Dataset.from_list(rows)},
    )
    assert trainer.reference_kind == "kept_adapter"
    assert all(KEPT_ADAPTER not in name for name in trained(trainer))
    trainer.train()
    assert entries(trainer, "kv_penalty")[0] == pytest.approx(0, abs=1e-9)
    found = trainer.evaluate()["eval_kv_penalty"]
    expected = equation_3(model, before, rows, chat_tokenizer, ["prefix", "query"])
    assert expected > 1e-3
    assert found == pytest.approx(expected, rel=1e-3)
    for name, value in model.named_parameters():
        if KEPT_ADAPTER in name:
            assert torch.equal(value, start[name.replace(KEPT_ADAPTER, "default")])
            assert not value.requires_grad


@pytest.mark.parametrize("lora", [True, False])
def test_a_postfix_reference_that_reads_the_query_needs_the_model_itself(
    lora: bool, tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(
        tiny_model("llama"),
        conversations(4),
        lora=lora,
        kv_regions=["postfix"],
        kv_postfix_reference="own_query",
    )
    assert trainer.reference_kind == ("adapter_off" if lora else "kept_model")
    trainer.train()
    penalties = entries(trainer, "kv_penalty")
    assert penalties[0] == pytest.approx(0, abs=1e-9)  # of these very rows, from themselves
    assert penalties[-1] > 0


@pytest.mark.parametrize("source", ["empty_query", "training_row"])
def test_postfix_is_compared_with_a_prompt_without_this_query(
    source: str,
    tiny_model: TinyModel,
    make_trainer: MakeTrainer,
    chat_tokenizer: PreTrainedTokenizerBase,
) -> None:
    """With one row, its own postfix is the training row's, so only that one starts at zero."""
    trainer = make_trainer(
        tiny_model("llama"),
        conversations(1),
        kv_regions=["postfix"],
        kv_postfix_reference=source,
        trainer={"eval_dataset": Dataset.from_list(conversations(1))},
    )
    penalty = trainer.evaluate()["eval_kv_penalty"]
    assert (penalty < 1e-9) == (source == "training_row")


def test_a_stored_reference(
    tiny_model: TinyModel, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    recorder = make_trainer(
        tiny_model("llama"), conversations(6, SYSTEMS), lora=False, output_dir=str(tmp_path / "a")
    )
    recorder.train()
    stored = str(tmp_path / "a" / REFERENCE_FILE)
    trainer = make_trainer(tiny_model("llama"), conversations(6, SYSTEMS), kv_reference=stored)
    assert trainer.reference_kind == "stored"
    trainer.train()
    assert entries(trainer, "kv_penalty")[0] == pytest.approx(0, abs=1e-9)
    with pytest.raises(ReferenceMismatchError, match="weights"):
        make_trainer(tiny_model("llama", seed=1), kv_reference=stored)
    unknown = make_trainer(
        tiny_model("llama"), conversations(2, ("Be rude.",)), kv_reference=stored
    )
    with pytest.raises(ReferenceMismatchError, match="system prompt"):
        unknown.train()


def start(how: str, tiny_model: TinyModel, seed: int = 0) -> dict[str, Any]:
    """Arguments of a run that trains `how`."""
    model = tiny_model("llama", seed=seed)
    if how == "adapter":
        return {"model": adapted(model), "lora": False}
    return {"model": model, "lora": how == "lora"}


@pytest.mark.parametrize("how", ["lora", "adapter", "full"])
def test_resumed_run_equals_an_uninterrupted_one(
    how: str, tiny_model: TinyModel, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "kv_weight": 30.0}
    names = ("loss", "kv_penalty", "grad_norm")
    whole = make_trainer(**start(how, tiny_model), **options)
    whole.train()
    resumed = make_trainer(**start(how, tiny_model), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    for name in names:
        assert entries(resumed, name)[-3:] == pytest.approx(entries(whole, name)[-3:], rel=1e-5)
    weights = trained(whole)
    for name, value in trained(resumed).items():
        torch.testing.assert_close(value, weights[name])


def test_resuming_from_the_checkpoints_model_keeps_the_first_reference(
    tiny_model: TinyModel, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "lora": False}
    whole = make_trainer(tiny_model("llama"), **options)
    whole.train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    model = type(tiny_model("llama")).from_pretrained(checkpoint)
    resumed = make_trainer(model, **options)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert entries(resumed, "kv_penalty") == pytest.approx(entries(whole, "kv_penalty"), rel=1e-5)


def test_resuming_from_another_model_is_refused_where_it_is_needed(
    tiny_model: TinyModel, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    make_trainer(tiny_model("llama"), **options).train()
    record = json.loads((tmp_path / "run" / RUN_FILE).read_text())
    assert record["kind"] == "adapter_off"
    other = make_trainer(tiny_model("llama", seed=1), **options)
    with pytest.raises(ConfigError, match="other weights"):
        other.train(resume_from_checkpoint=True)
    with pytest.raises(ConfigError, match="another output_dir"):
        other.train()
