"""`kv_weight: auto` in the trainer, and regions with weights of their own."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from datasets import Dataset
from training_helpers import conversations, disturb, entries, trained
from transformers import PreTrainedModel, TrainerCallback

from treft.training import TReFTTrainer
from treft.training.auto_weight import AutoWeight
from treft.training.output import StopOnInterrupt

MakeTrainer = Callable[..., TReFTTrainer]
TinyModel = Callable[..., PreTrainedModel]
AUTO = {"kv_weight": "auto", "kv_weight_start": 1.0, "kv_budget": 0.02}
SAVING = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}


def steered(controller: AutoWeight, measured: list[float]) -> list[float]:
    """λ used in each step: the one before its measurement."""
    found = []
    for value in measured:
        found.append(controller.weight)
        controller.update(value)
    return found


@pytest.mark.parametrize(("per_device", "accumulated"), [(4, 1), (1, 4)])
def test_each_step_uses_the_weight_that_the_steps_before_it_gave(
    per_device: int, accumulated: int, tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(
        tiny_model("llama"),
        **AUTO,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulated,
        max_steps=6,
    )
    trainer.train()
    drifts, weights = entries(trainer, "kv_penalty"), entries(trainer, "kv_weight")
    assert weights == steered(AutoWeight(0.02), drifts)  # bit for bit
    assert weights[0] == 1.0
    assert len(set(weights)) == 6
    assert max(drifts) > 0.02
    for entry in trainer.state.log_history[:-1]:
        assert entry["kv_loss"] == pytest.approx(entry["kv_weight"] * entry["kv_penalty"])
        assert entry["loss"] == pytest.approx(entry["sft_loss"] + entry["kv_loss"], rel=1e-5)


def test_accumulated_rows_are_steered_as_one_batch(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    found = []
    for per_device, accumulated in ((4, 1), (2, 2)):
        trainer = make_trainer(
            tiny_model("llama"),
            **AUTO,
            per_device_train_batch_size=per_device,
            gradient_accumulation_steps=accumulated,
            optim="sgd",
            learning_rate=0.3,
            max_steps=4,
        )
        disturb(trainer)
        trainer.train()
        found.append((entries(trainer, "kv_weight"), trained(trainer)))
    (weights, ours), (other_weights, theirs) = found
    assert other_weights == pytest.approx(weights, rel=1e-4)
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, atol=2e-6, rtol=2e-5)


def test_a_budget_is_held(tiny_model: TinyModel, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(
        tiny_model("llama"),
        **AUTO,
        max_steps=90,
        learning_rate=3e-3,
        lr_scheduler_type="constant",  # as it falls to 0, drift stays where it is, whatever λ does
        gradient_checkpointing=False,
    )
    trainer.train()
    drifts = entries(trainer, "kv_penalty")
    assert max(drifts) > 0.03  # it binds
    assert fmean(drifts[-20:]) == pytest.approx(0.02, rel=0.25)


@pytest.mark.parametrize("restores_callbacks", [False, True])
def test_a_resumed_run_goes_on_bit_for_bit(
    restores_callbacks: bool, tiny_model: TinyModel, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    options = {**AUTO, **SAVING, "restore_callback_states_from_checkpoint": restores_callbacks}
    whole = make_trainer(tiny_model("llama"), **options)
    whole.train()
    resumed = make_trainer(tiny_model("llama"), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    for name in ("kv_weight", "kv_penalty", "loss"):
        assert entries(resumed, name) == entries(whole, name)
        assert len(entries(resumed, name)) == 6
    weights = trained(whole)
    for name, value in trained(resumed).items():
        assert torch.equal(value, weights[name])
    whole.train()
    assert entries(whole, "kv_weight")[0] == 1.0  # a fresh start is one


class _CtrlC(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_keeps_the_weight(tiny_model: TinyModel, make_trainer: MakeTrainer) -> None:
    whole = make_trainer(tiny_model("llama"), **AUTO, max_steps=4)
    whole.train()
    options = {**AUTO, **SAVING, "max_steps": 4}
    stopped = make_trainer(tiny_model("llama"), **options)
    with StopOnInterrupt() as interrupt:
        stopped.add_callback(interrupt)
        stopped.add_callback(_CtrlC())
        stopped.train()
    assert stopped.state.global_step == 2
    resumed = make_trainer(tiny_model("llama"), **options)
    resumed.train(resume_from_checkpoint=True)
    assert entries(resumed, "kv_weight") == entries(whole, "kv_weight")


def test_a_checkpoint_without_a_weight_starts_it_anew(
    tiny_model: TinyModel, make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(tiny_model("llama"), **SAVING).train()
    resumed = make_trainer(tiny_model("llama"), **AUTO, **SAVING)
    with caplog.at_level("WARNING"):
        resumed.train(resume_from_checkpoint=resumed.args.output_dir + "/checkpoint-3")
    assert entries(resumed, "kv_weight")[0] == 1.0
    assert "kv_weight starts at 1.0" in caplog.text
    assert "resuming with kv_weight=auto; the run began with 5.0" in caplog.text


def test_a_checkpoint_of_an_earlier_version_goes_on_from_its_weight(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    make_trainer(tiny_model("llama"), **AUTO, **SAVING).train()
    resumed = make_trainer(tiny_model("llama"), **AUTO, **SAVING)
    checkpoint = Path(resumed.args.output_dir) / "checkpoint-3"
    path = checkpoint / "trainer_state.json"
    state = json.loads(path.read_text())
    kept = {"weight": 7.5, "average": 0.02, "num_steps": 3}
    state["stateful_callbacks"]["AutoWeight"]["attributes"] = {"kept": kept}
    path.write_text(json.dumps(state))
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert entries(resumed, "kv_weight")[3] == 7.5  # of the step after the checkpoint


def test_a_number_is_not_steered(tiny_model: TinyModel, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(tiny_model("llama"))
    trainer.train()
    assert not entries(trainer, "kv_weight")
    assert entries(trainer, "kv_loss")[1] == pytest.approx(5 * entries(trainer, "kv_penalty")[1])


def test_weighted_regions_add_up_however_batches_are_made(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    weights = {"prefix": 1.0, "query": 0.2, "postfix": 0.3}
    found = []
    for options in (
        {"per_device_eval_batch_size": 8},
        {"per_device_eval_batch_size": 2},
        {"padding_free": True, "max_length": None},
        {"packing": True, "max_length": 256},
    ):
        trainer = make_trainer(
            tiny_model("llama"),
            kv_regions=list(weights),
            kv_region_weights=weights,
            trainer={"eval_dataset": Dataset.from_list(conversations(6))},
            **options,
        )
        disturb(trainer)
        metrics = trainer.evaluate()
        parts = {region: metrics[f"eval_kv_penalty/{region}"] for region in weights}
        expected = sum(weights[region] * parts[region] for region in weights)
        assert metrics["eval_kv_penalty"] == pytest.approx(expected, rel=1e-5)
        found.append([metrics["eval_kv_penalty"], *parts.values()])
    assert min(found[0]) > 0.01
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-4)


def test_weighted_regions_accumulate(tiny_model: TinyModel, make_trainer: MakeTrainer) -> None:
    results = []
    for per_device, accumulated in ((4, 1), (1, 4)):
        trainer = make_trainer(
            tiny_model("llama"),
            kv_weight=30.0,
            kv_regions=["prefix", "postfix"],
            kv_region_weights='{"prefix": 1, "postfix": 0.3}',
            per_device_train_batch_size=per_device,
            gradient_accumulation_steps=accumulated,
            optim="sgd",
            learning_rate=0.5,
            max_steps=2,
        )
        disturb(trainer)
        trainer.train()
        names = ("kv_penalty", "kv_penalty/prefix", "kv_penalty/postfix", "loss")
        results.append((trained(trainer), [entries(trainer, name) for name in names]))
    (weights, logs), (other_weights, other_logs) = results
    for entry in zip(*logs, strict=True):
        assert entry[0] == pytest.approx(entry[1] + 0.3 * entry[2], rel=1e-5)
    for expected, found in zip(logs, other_logs, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    for name, value in weights.items():
        torch.testing.assert_close(other_weights[name], value, atol=2e-6, rtol=2e-5)
