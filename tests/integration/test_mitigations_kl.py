"""KL to the unfinetuned model: against float64 by hand, on training rows and on a retain set."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from mitigation_helpers import added_by, assert_same_gradients, double_twin, first_batch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from training_helpers import LORA, conversations, disturb, entries, trained
from transformers import PreTrainedModel

from treft.errors import ConfigError
from treft.mitigations.kl import KLOnRetain, KLOnTrain
from treft.training import TReFTTrainer

MakeTrainer = Callable[..., TReFTTrainer]
TinyModel = Callable[..., PreTrainedModel]


def make(make_trainer: MakeTrainer, model: PreTrainedModel, kl: object, **config: object):  # type: ignore[no-untyped-def]
    options = {"kv_weight": 0.0, "assistant_only_loss": True, "gradient_checkpointing": False}
    return make_trainer(model, trainer={"mitigations": [kl]}, **{**options, **config})


def by_hand(twin: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Mean over learnt tokens of Σ_v p⁰ (log p⁰ - log p), from whole logits in float64."""
    labels = inputs["labels"]
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with twin.disable_adapter(), torch.no_grad():
        before = twin(**given).logits.log_softmax(-1)
    now = twin(**given).logits.log_softmax(-1)
    sums = []
    for row in range(len(labels)):
        for column in range(1, labels.shape[1]):
            if labels[row, column] != -100:
                old, new = before[row, column - 1], now[row, column - 1]
                sums.append((old.exp() * (old - new)).sum())
    return torch.stack(sums).mean()


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_train_term_is_the_whole_sum_over_the_vocabulary(
    name: str, tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    trainer = make(make_trainer, tiny_model(name), KLOnTrain(weight=50.0))
    disturb(trainer)
    value, found = added_by(trainer)
    twin = double_twin(trainer)
    expected = 50 * by_hand(twin, first_batch(trainer))
    assert value == pytest.approx(float(expected), rel=1e-3)
    assert float(expected) > 0.1
    assert_same_gradients(found, expected, twin)


def test_retain_term_is_that_of_its_own_rows(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    kl = KLOnRetain(conversations(5)[2:], weight=3.0, batch_size=3)
    trainer = make(make_trainer, tiny_model("llama"), kl)
    disturb(trainer)
    value, found = added_by(trainer)
    twin = double_twin(trainer)
    inputs = kl._collate(kl._rows)  # three rows: the first batch holds all of them
    expected = 3 * by_hand(twin, inputs)
    assert value == pytest.approx(float(expected), rel=1e-3)
    assert_same_gradients(found, expected, twin)


def test_retain_rows_are_all_used_before_one_repeats_and_follow_seed_and_number(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    kl = KLOnRetain(conversations(7), batch_size=2)
    make(make_trainer, tiny_model("llama"), kl)
    drawn = [tuple(row["input_ids"]) for k in range(7) for row in kl.retain_batch(k, 2, seed=1)]
    assert len(set(drawn[:7])) == len(set(drawn[7:])) == 7
    assert drawn[:7] != drawn[7:]
    assert kl.retain_batch(3, 2, seed=1) == kl.retain_batch(3, 2, seed=1)
    assert kl.retain_batch(0, 7, seed=1) != kl.retain_batch(0, 7, seed=2)


@pytest.mark.parametrize("kind", [KLOnTrain, lambda weight: KLOnRetain(conversations(4), weight)])
def test_training_stays_close_to_the_base_which_stays_as_it_was(
    kind: Callable[..., object], tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    plain = make_trainer(tiny_model("llama"), kv_weight=0.0, assistant_only_loss=True, max_steps=6)
    held = make(
        make_trainer,
        tiny_model("llama"),
        kind(weight=20.0),
        max_steps=6,
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
    )
    base = {n: p.clone() for n, p in held.model.named_parameters() if not p.requires_grad}
    for trainer in (plain, held):
        trainer.train()
    kl = {}
    for name, trainer in (("plain", plain), ("held", held)):
        kl[name] = float(by_hand(double_twin(trainer).eval(), first_batch(trainer)).detach())
    assert kl["held"] < 0.5 * kl["plain"]
    logged = entries(held, f"{held.mitigations[0].name}_loss")
    sums = [a + b for a, b in zip(entries(held, "sft_loss"), logged, strict=True)]
    assert entries(held, "loss") == pytest.approx(sums, rel=1e-4)
    for name, value in held.model.named_parameters():
        if name in base:
            assert torch.equal(value, base[name])
    assert any(bool(v.any()) for n, v in trained(held).items() if "lora_B" in n)


def test_accumulated_rows_equal_one_batch(tiny_model: TinyModel, make_trainer: MakeTrainer) -> None:
    results = []
    for per_device, accumulated in ((4, 1), (1, 4)):
        trainer = make(
            make_trainer,
            tiny_model("llama"),
            KLOnTrain(weight=5.0),
            per_device_train_batch_size=per_device,
            gradient_accumulation_steps=accumulated,
            optim="sgd",
            learning_rate=0.1,
            max_steps=2,
        )
        disturb(trainer)
        trainer.train()
        results.append((trained(trainer), entries(trainer, "kl_train_loss")))
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-4)
    for name, value in results[0][0].items():
        torch.testing.assert_close(results[1][0][name], value, atol=2e-6, rtol=2e-5)


def test_full_finetune_compares_with_a_frozen_copy(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    kl = KLOnTrain(weight=1.0)
    trainer = make(make_trainer, tiny_model("llama"), kl, lora=False, learning_rate=1e-2)
    trainer.train()
    assert kl.reference.kind == "kept_model"
    assert entries(trainer, "kl_train_loss")[0] == pytest.approx(0, abs=1e-5)
    assert entries(trainer, "kl_train_loss")[-1] > 1e-3
    assert not any(value.requires_grad for value in kl.reference.model.parameters())


def test_an_adapter_trained_further_is_compared_with_itself_before(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    learnt = get_peft_model(tiny_model("llama"), LoraConfig(**LORA))
    for name, value in learnt.named_parameters():
        if "lora_B" in name:
            value.data.fill_(0.2)
    kl = KLOnTrain(weight=1.0)
    trainer = make(make_trainer, learnt, kl, lora=False)
    trainer.train()
    assert kl.reference.kind == "kept_adapter"
    assert entries(trainer, "kl_train_loss")[0] == pytest.approx(0, abs=1e-5)
    assert entries(trainer, "kl_train_loss")[-1] > 1e-4
    kept = [v for n, v in trainer.model.named_parameters() if "lora_B.treft_reference" in n]
    assert kept
    assert all(bool((value == 0.2).all()) and not value.requires_grad for value in kept)


@pytest.mark.parametrize(
    ("make_wrong", "words"),
    [
        (lambda: KLOnTrain(0.0), "kl_train_weight must be a positive number"),
        (lambda: KLOnTrain(float("nan")), "kl_train_weight"),
        (lambda: KLOnRetain([]), "at least one"),
        (lambda: KLOnRetain(conversations(1), batch_size=0), "at least 1"),
    ],
)
def test_wrong_options(make_wrong: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_wrong()


def test_a_trained_head_and_a_method_given_twice_are_refused(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    lora = LoraConfig(**LORA, modules_to_save=["lm_head"])
    with pytest.raises(ConfigError, match="modules_to_save"):
        make_trainer(
            tiny_model("llama"),
            lora=False,
            kv_weight=0.0,
            trainer={"mitigations": [KLOnTrain()], "peft_config": lora},
        )
    with pytest.raises(ConfigError, match="given twice"):
        make_trainer(
            tiny_model("llama"), kv_weight=0.0, trainer={"mitigations": [KLOnTrain(), KLOnTrain()]}
        )
