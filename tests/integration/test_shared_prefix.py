"""Tokens that all rows begin with, run once: the loss, gradient and log of whole rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from mitigation_helpers import first_batch, gradients, num_columns_run
from peft import LoraConfig, PrefixTuningConfig
from training_helpers import LORA, conversations, disturb
from transformers import PreTrainedModel

from treft.errors import ConfigError
from treft.mitigations.activated_lora import ActivatedLora
from treft.mitigations.features import FeatureDistance
from treft.mitigations.kl import KLOnRetain, KLOnTrain
from treft.training import TReFTTrainer
from treft.training.forward import num_shared

MakeTrainer = Callable[..., TReFTTrainer]
TinyModel = Callable[..., PreTrainedModel]
SHARED: dict[str, Any] = {
    "share_prefix": True,
    "assistant_only_loss": True,
    "gradient_checkpointing": False,
}
SYSTEMS = ("Be brief.", "Be a very careful helper.")


def at_work(trainer: TReFTTrainer) -> TReFTTrainer:
    """As in the middle of training."""
    disturb(trainer)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"kv_weight": 0.0},
    "learnt-only": {"kv_weight": 0.0, "learnt_tokens_only": True},
    "prefix": {"kv_weight": 5.0},
    "all": {"kv_weight": 5.0, "kv_regions": "all", "learnt_tokens_only": True},
    "postfix-values": {
        **{"kv_weight": 5.0, "kv_regions": ["postfix"]},
        **{"kv_layers": [1], "kv_states": "value"},
    },
}
# Every option on one architecture, and every architecture with what asks most of it.
CASES = [("llama", option) for option in OPTIONS]
CASES += [(name, "all") for name in ("qwen2", "qwen3", "qwen3_moe", "phi3", "olmo2")]


@pytest.mark.parametrize(("name", "option"), CASES)
def test_loss_and_gradient_are_those_of_whole_rows(
    name: str, option: str, tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    rows = conversations(4, system=SYSTEMS[:1])
    moe = {"router_aux_loss_coef": 0.0} if name == "qwen3_moe" else {}
    lora = {**LORA, "target_modules": "all-linear"}
    found = []
    for shares in (False, True):
        trainer = at_work(
            make_trainer(
                tiny_model(name),
                rows,
                lora=False,
                trainer={"peft_config": LoraConfig(**lora)},
                per_device_train_batch_size=4,
                **{**SHARED, **OPTIONS[option], **moe, "share_prefix": shares},
            )
        )
        loss = trainer.compute_loss(trainer.model, first_batch(trainer))
        found.append((float(loss.detach()), gradients(trainer, loss)))
    (expected, wanted), (ours, own) = found
    assert ours == pytest.approx(expected, rel=1e-5)
    assert sum(float(grad.norm()) for grad in wanted.values()) > 1e-2
    for key, grad in wanted.items():
        torch.testing.assert_close(own[key], grad, rtol=1e-3, atol=1e-5)
    inputs = first_batch(trainer)
    model_inputs = ("input_ids", "labels", "attention_mask")
    num_prefix = num_shared({name: inputs[name] for name in model_inputs})
    assert num_prefix > 8
    num_columns = inputs["input_ids"].shape[1]
    first, *_, last = num_columns_run(trainer, inputs)  # between them the base may read whole rows
    assert [first, last] == [num_prefix, num_columns - num_prefix]


def test_training_evaluation_and_log_are_those_of_whole_rows(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    rows = conversations(8, system=SYSTEMS[:1])
    logs = []
    for shares in (False, True):
        trainer = make_trainer(
            tiny_model("llama"),
            rows,
            trainer={
                "mitigations": [KLOnRetain(conversations(6)[4:], 0.5)],
                "eval_dataset": Dataset.from_list(rows[:3]),
            },
            max_steps=4,
            gradient_accumulation_steps=2,
            max_grad_norm=0.5,
            **{**SHARED, "share_prefix": shares},
        )
        trainer.train()
        logs.append([*trainer.state.log_history[:-1], trainer.evaluate()])
    timing = ("runtime", "per_second")
    for whole, ours in zip(*logs, strict=True):
        kept = {name: value for name, value in whole.items() if not name.endswith(timing)}
        assert {name: ours[name] for name in kept} == pytest.approx(kept, rel=2e-3, abs=1e-5)
    assert {"kv_penalty", "kl_retain_loss"} <= set(logs[0][0])


@pytest.mark.parametrize("name", ["kl_train", "kl_retain"])
def test_kl_is_that_of_whole_rows_and_its_models_share_the_prefix_too(
    name: str, tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    rows = conversations(8, system=SYSTEMS[:1])
    found, columns = [], []
    for shares in (False, True):
        method = KLOnTrain(2.0) if name == "kl_train" else KLOnRetain(rows[4:], 2.0)
        trainer = at_work(
            make_trainer(
                tiny_model("llama"),
                rows[:4],
                trainer={"mitigations": [method]},
                **{**SHARED, "kv_weight": 0.0, "share_prefix": shares},
            )
        )
        loss = trainer.compute_loss(trainer.model, first_batch(trainer))
        found.append((float(loss.detach()), gradients(trainer, loss)))
        columns.append(num_columns_run(trainer, first_batch(trainer)))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    for key, grad in found[0][1].items():
        torch.testing.assert_close(found[1][1][key], grad, rtol=2e-3, atol=2e-5)
    whole, shared = columns
    assert len(shared) == 2 * len(whole)  # each forward in two parts
    assert [a + b for a, b in zip(shared[::2], shared[1::2], strict=True)] == whole


def test_activated_lora_stays_off_in_the_shared_prefix(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    found = []
    for shares in (False, True):
        trainer = at_work(
            make_trainer(
                tiny_model("llama"),
                conversations(4, system=SYSTEMS[:1]),
                trainer={"mitigations": [ActivatedLora()]},
                **{**SHARED, "kv_weight": 0.0, "share_prefix": shares},
            )
        )
        loss = trainer.compute_loss(trainer.model, first_batch(trainer))
        found.append((float(loss.detach()), gradients(trainer, loss)))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    for key, grad in found[0][1].items():
        torch.testing.assert_close(found[1][1][key], grad, rtol=1e-3, atol=1e-5)


def test_rows_that_share_nothing_are_run_whole(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    options = {**SHARED, "kv_weight": 0.0}
    all_learnt = {**options, "assistant_only_loss": False}
    for given in ({**options, "per_device_train_batch_size": 1}, all_learnt):
        trainer = at_work(make_trainer(tiny_model("llama"), **given))
        inputs = first_batch(trainer)
        assert num_columns_run(trainer, inputs) == [inputs["input_ids"].shape[1]]


def test_rows_under_other_system_prompts_share_what_comes_before_them(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    rows = conversations(4, system=SYSTEMS)
    trainer = at_work(make_trainer(tiny_model("llama"), rows, **{**SHARED, "kv_weight": 0.0}))
    inputs = first_batch(trainer)
    first, second = inputs["input_ids"].tolist()[:2]
    num = next(n for n, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
    assert num > 2
    assert num_columns_run(trainer, inputs) == [num, len(first) - num]


def test_shared_columns_end_where_rows_part_a_query_begins_or_a_token_is_learnt() -> None:
    ids = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 8, 1]])
    codes = torch.tensor([[1, 1, 1, 2, 2]] * 2)
    inputs = {"input_ids": ids, "labels": torch.full_like(ids, -100)}
    assert num_shared(inputs, codes) == 3
    assert num_shared(inputs) == 4
    padded = torch.tensor([[1] * 5, [0] * 2 + [1] * 3])
    assert num_shared({**inputs, "attention_mask": padded}, codes) == 0
    other = ids.clone()
    other[1, 1] = 3
    assert num_shared({**inputs, "input_ids": other}, codes) == 1
    learnt = inputs["labels"].clone()
    learnt[0, 3] = 8  # predicted from column 2
    assert num_shared({**inputs, "labels": learnt}, codes) == 2
    same = {**inputs, "input_ids": ids[:1].expand(2, -1)}
    assert num_shared(same) == 4  # something is left to run
    assert num_shared({**inputs, "position_ids": ids}, codes) == 0
    assert num_shared({**inputs, "pixel_values": ids}) == 0
    assert num_shared({"input_ids": ids}, codes) == 0


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("llama", {"gradient_checkpointing": True}, "gradient_checkpointing=False"),
        ("llama", {"packing": True, "max_length": 256}, "packing=False"),
        ("llama", {"padding_free": True, "max_length": None}, "padding_free=False"),
        ("mistral", {}, "sliding windows"),
        ("gemma3", {}, "sliding windows"),
        ("qwen3_moe", {}, "router_aux_loss_coef=0"),
    ],
)
def test_what_needs_whole_rows_is_refused(
    name: str,
    options: dict[str, Any],
    words: str,
    tiny_model: TinyModel,
    make_trainer: MakeTrainer,
) -> None:
    with pytest.raises(ConfigError, match=f"share_prefix cannot work here: .*{words}"):
        make_trainer(tiny_model(name), **{**SHARED, **options})


def test_dropout_prompt_adapters_and_methods_that_read_the_forward_are_refused(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    def refused(words: str, **trainer: Any) -> None:
        with pytest.raises(ConfigError, match=words):
            make_trainer(
                tiny_model("llama"),
                lora="peft_config" not in trainer,
                trainer=trainer,
                **{**SHARED, "kv_weight": 0.0},
            )

    prefix_tuning = PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    refused("lora_dropout=0", peft_config=LoraConfig(**LORA, lora_dropout=0.05))
    refused("tokens of its own", peft_config=prefix_tuning)
    refused("ldifs changes or reads", mitigations=[FeatureDistance(1.0)])
