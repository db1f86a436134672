"""TReFTTrainer's loss: TRL's at λ = 0, eq. (3)'s otherwise, however batches are made up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from training_helpers import LORA, conversations, disturb, entries, trained
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from treft.training import TReFTConfig, TReFTTrainer

MakeTrainer = Callable[..., TReFTTrainer]
TinyModel = Callable[..., PreTrainedModel]


@pytest.mark.parametrize("packing", [False, True])
def test_weight_zero_is_sft_bit_for_bit(
    packing: bool,
    tiny_model: TinyModel,
    chat_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: Any) -> None:
        raise AssertionError("captured at weight 0")

    monkeypatch.setattr("treft.core.regularizer.listen", fail)
    runs = []
    for trainer_class, config_class, extra in (
        (SFTTrainer, SFTConfig, {}),
        (TReFTTrainer, TReFTConfig, {"kv_weight": 0.0}),
    ):
        config = config_class(
            output_dir=str(tmp_path / config_class.__name__),
            max_steps=4,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            packing=packing,
            max_length=128,
            learning_rate=1e-2,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            **extra,
        )
        trainer = trainer_class(
            tiny_model("llama"),
            config,
            train_dataset=Dataset.from_list(conversations()),
            processing_class=chat_tokenizer,
            peft_config=LoraConfig(**LORA),
        )
        trainer.train()
        runs.append((entries(trainer, "loss"), entries(trainer, "grad_norm"), trained(trainer)))
    (losses, norms, weights), (our_losses, our_norms, our_weights) = runs
    assert our_losses == losses
    assert our_norms == norms
    assert len(losses) == 4
    for name, value in weights.items():
        assert torch.equal(our_weights[name], value)


def test_first_step_is_sft_and_then_the_penalty_is_felt(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    """TRL's own defaults here: bf16 autocast and gradient checkpointing."""
    plain = make_trainer(tiny_model("llama"), kv_weight=0.0, bf16=True, max_steps=8)
    held = make_trainer(tiny_model("llama"), kv_weight=100.0, bf16=True, max_steps=8)
    for trainer in (plain, held):
        trainer.train()
    assert entries(held, "kv_penalty")[0] == pytest.approx(0, abs=1e-5)
    assert entries(held, "loss")[0] == pytest.approx(entries(plain, "loss")[0], abs=1e-3)

    measured = make_trainer(tiny_model("llama"), trainer={"eval_dataset": held.train_dataset})
    drifts = []
    for trainer in (plain, held):
        weights = trained(trainer)
        with torch.no_grad():
            for name, value in measured.model.named_parameters():
                if name in weights:
                    value.copy_(weights[name])
        drifts.append(measured.evaluate()["eval_kv_penalty"])
    assert drifts[1] < 0.25 * drifts[0]


def test_accumulated_rows_equal_one_batch(tiny_model: TinyModel, make_trainer: MakeTrainer) -> None:
    results = []
    for per_device, accumulated in ((4, 1), (1, 4), (2, 2)):
        trainer = make_trainer(
            tiny_model("llama"),
            kv_weight=30.0,
            per_device_train_batch_size=per_device,
            gradient_accumulation_steps=accumulated,
            optim="sgd",
            learning_rate=0.5,
            max_steps=3,
        )
        disturb(trainer)
        trainer.train()
        names = ("loss", "sft_loss", "kv_loss", "kv_penalty")
        results.append((trained(trainer), [entries(trainer, name) for name in names]))
    weights, logs = results[0]
    assert logs[3][0] > 0.01  # the penalty matters
    for other_weights, other_logs in results[1:]:
        for name, value in weights.items():
            torch.testing.assert_close(other_weights[name], value, atol=2e-6, rtol=2e-5)
        for expected, found in zip(logs, other_logs, strict=True):
            assert found == pytest.approx(expected, rel=1e-4)


def test_loss_not_scaled_by_trl_is_accumulated_alike(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    """A model that does not take loss kwargs: Trainer divides, and the penalty is not divided."""
    results = []
    for per_device, accumulated in ((4, 1), (1, 4)):
        trainer = make_trainer(
            tiny_model("llama"),
            kv_weight=1e4,  # the SFT loss itself does depend on accumulation here
            per_device_train_batch_size=per_device,
            gradient_accumulation_steps=accumulated,
            optim="sgd",
            learning_rate=1e-6,
            max_steps=1,
        )
        trainer.model_accepts_loss_kwargs = False
        disturb(trainer)
        trainer.train()
        logs = [entries(trainer, name)[0] for name in ("loss", "sft_loss", "kv_loss")]
        assert logs[0] == pytest.approx(logs[1] + logs[2], rel=1e-5)
        results.append(logs[2])
    assert results[1] == pytest.approx(results[0], rel=1e-4)


def test_log_adds_up(tiny_model: TinyModel, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(tiny_model("llama"), kv_log_layers=True, logging_steps=2)
    trainer.args.max_steps = 4
    trainer.train()
    for entry in trainer.state.log_history[:-1]:
        assert entry["loss"] == pytest.approx(entry["sft_loss"] + entry["kv_loss"], rel=1e-5)
        assert entry["kv_loss"] == pytest.approx(5.0 * entry["kv_penalty"])
        layers = [entry[f"kv_penalty/layer_{layer}"] for layer in range(2)]
        assert entry["kv_penalty"] == pytest.approx(sum(layers) / 2)
    assert len(entries(trainer, "kv_penalty")) == 2


@pytest.mark.parametrize("regions", [["prefix"], ["all"]])
def test_padded_flattened_and_packed_batches_have_one_penalty(
    regions: list[str], tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    found = []
    for options in (
        {"per_device_eval_batch_size": 8},
        {"per_device_eval_batch_size": 2},
        {"padding_free": True, "max_length": None},
        {"packing": True, "max_length": 256},
        {"per_device_eval_batch_size": 8, "pad_to_multiple_of": 64},
    ):
        trainer = make_trainer(
            tiny_model("llama"),
            kv_regions=regions,
            trainer={"eval_dataset": Dataset.from_list(conversations(6))},
            **options,
        )
        disturb(trainer)
        found.append(trainer.evaluate()["eval_kv_penalty"])
    assert found[0] > 0.01
    assert found == pytest.approx([found[0]] * len(found), rel=1e-4)


def test_evaluation_adds_up_for_each_dataset(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    datasets = {name: Dataset.from_list(conversations(num)) for name, num in (("a", 4), ("b", 3))}
    trainer = make_trainer(tiny_model("llama"), trainer={"eval_dataset": datasets})
    disturb(trainer)
    metrics = trainer.evaluate()
    for name in datasets:
        parts = metrics[f"eval_{name}_sft_loss"] + metrics[f"eval_{name}_kv_loss"]
        assert metrics[f"eval_{name}_loss"] == pytest.approx(parts, rel=1e-5)
        assert metrics[f"eval_{name}_kv_penalty"] > 0.01


def test_only_the_adapter_learns(tiny_model: TinyModel, make_trainer: MakeTrainer) -> None:
    model = tiny_model("llama")
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trainer = make_trainer(model, kv_regions=["all"])
    trainer.train()
    for name, value in model.named_parameters():
        plain = name.replace(".base_layer", "")
        if "lora_" not in name:
            assert torch.equal(value, before[plain]), name
            assert value.grad is None


def test_extra_forwards_do_not_replace_the_captured_one(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    """Label smoothing makes TRL run the model twice, the second time without gradient."""
    trainer = make_trainer(tiny_model("llama"), label_smoothing_factor=0.1, max_steps=1)
    disturb(trainer)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.compute_loss(trainer.model, dict(batch))
    with_penalty = torch.autograd.grad(loss, _adapter(trainer.model), retain_graph=False)
    trainer._penalty.regularizer.weight = 1e-9
    without = torch.autograd.grad(
        trainer.compute_loss(trainer.model, dict(batch)), _adapter(trainer.model)
    )
    pairs = zip(with_penalty, without, strict=True)
    assert any(not torch.allclose(one, other, rtol=1e-3) for one, other in pairs)


def _adapter(model: nn.Module) -> list[nn.Parameter]:
    return [value for name, value in model.named_parameters() if "layers.0.self_attn.k" in name][
        -1:
    ]


def test_users_own_collator_may_pad_left(
    tiny_model: TinyModel, make_trainer: MakeTrainer, chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        assert all("region_codes" not in example for example in examples)
        width = max(len(example["input_ids"]) for example in examples)
        pads = [width - len(example["input_ids"]) for example in examples]
        ids = [[0] * n + row["input_ids"] for n, row in zip(pads, examples, strict=True)]
        labels = [[-100] * n + row["labels"] for n, row in zip(pads, examples, strict=True)]
        mask = torch.tensor([[0] * n + [1] * (width - n) for n in pads])
        return {
            "input_ids": torch.tensor(ids),
            "labels": torch.tensor(labels),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
        }

    found = []
    for collator in (None, collate):
        trainer = make_trainer(
            tiny_model("llama"),
            trainer={"data_collator": collator, "eval_dataset": Dataset.from_list(conversations())},
        )
        disturb(trainer)
        found.append(trainer.evaluate()["eval_kv_penalty"])
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_a_plain_sft_config_is_taken(
    tiny_model: TinyModel, chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    config = SFTConfig(
        str(tmp_path), learning_rate=3e-3, max_steps=1, report_to="none", use_cpu=True
    )
    model = get_peft_model(tiny_model("llama"), LoraConfig(**LORA))
    trainer = TReFTTrainer(
        model,
        config,
        train_dataset=Dataset.from_list(conversations()),
        processing_class=chat_tokenizer,
    )
    assert isinstance(trainer.args, TReFTConfig)
    assert trainer.args.kv_weight == 1.0
    assert trainer.args.learning_rate == 3e-3
    assert trainer.reference_kind == "adapter_off"
