"""Early stopping, weight norm, interpolation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from training_helpers import LORA, conversations, disturb, entries
from transformers import PreTrainedModel

from treft.errors import ConfigError, DataError
from treft.mitigations.early_stopping import StopOnScore
from treft.mitigations.weights import WeightNormCap, adapter_norm, interpolate_adapter
from treft.training import TReFTTrainer

MakeTrainer = Callable[..., TReFTTrainer]
TinyModel = Callable[..., PreTrainedModel]


def test_stops_at_the_first_measurement_below_the_floor(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    scores = iter([90.0, 88.0, 85.1, 84.9, 99.0])
    seen: list[nn.Module] = []

    def score(model: nn.Module) -> float:
        seen.append(model)
        return next(scores)

    stop = StopOnScore(score, drop=5.0, every=2)
    trainer = make_trainer(
        tiny_model("llama"), trainer={"mitigations": [stop]}, kv_weight=0.0, max_steps=20
    )
    trainer.train()
    assert trainer.state.global_step == 6
    assert entries(trainer, "general_score") == [88.0, 85.1, 84.9]
    assert len(seen) == 4


def test_general_rows_are_the_score_and_training_is_not_disturbed(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    losses = []
    for methods in ([], [StopOnScore(conversations(2), drop=100.0, every=1)]):
        trainer = make_trainer(
            tiny_model("llama"), trainer={"mitigations": methods}, kv_weight=0.0, max_steps=3
        )
        trainer.train()
        losses.append(entries(trainer, "grad_norm"))
    assert losses[0] == losses[1]
    assert len(entries(trainer, "general_score")) == 3


def test_the_cap_holds_the_norm_of_the_weight_change(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    norms = []
    for methods in ([], [WeightNormCap(0.05)]):
        trainer = make_trainer(
            tiny_model("llama"), trainer={"mitigations": methods}, kv_weight=0.0, max_steps=4
        )
        base = {n: v.clone() for n, v in tiny_model("llama").named_parameters()}
        trainer.train()
        measured = float(adapter_norm(trainer.model))
        merged = trainer.model.merge_and_unload()
        change = [
            (value - base[name]).double().square().sum()
            for name, value in merged.named_parameters()
        ]
        norms.append(float(torch.stack(change).sum().sqrt()))
        assert measured == pytest.approx(norms[-1], rel=1e-3)
    assert norms[0] > 0.1
    assert norms[1] == pytest.approx(0.05, rel=1e-3)


def test_interpolation_is_linear_in_the_weights(
    tiny_model: TinyModel, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer = make_trainer(tiny_model("llama"), kv_weight=0.0)
    disturb(trainer)
    trainer.save_model(str(tmp_path / "adapter"))
    base = dict(tiny_model("llama").named_parameters())

    def weights(folder: Path) -> dict[str, torch.Tensor]:
        model = PeftModel.from_pretrained(tiny_model("llama"), folder).merge_and_unload()
        return dict(model.named_parameters())

    finetuned = weights(tmp_path / "adapter")
    for alpha in (0.0, 0.3, 1.0):
        interpolate_adapter(tmp_path / "adapter", alpha, tmp_path / f"at-{alpha}")
        for name, value in weights(tmp_path / f"at-{alpha}").items():
            expected = (1 - alpha) * base[name] + alpha * finetuned[name]
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    moved = [float((finetuned[n] - base[n]).abs().max()) for n in base]
    assert max(moved) > 0.01
    assert sum(value > 0 for value in moved) == 2 * len(LORA["target_modules"])
    with pytest.raises(ConfigError, match="exists"):
        interpolate_adapter(tmp_path / "adapter", 0.5, tmp_path / "at-0.3")
    with pytest.raises(ConfigError, match="at least 0"):
        interpolate_adapter(tmp_path / "adapter", -1.0, tmp_path / "new")
    with pytest.raises(DataError, match="cannot be read as an adapter"):
        interpolate_adapter(tmp_path, 0.5, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("make_wrong", "words"),
    [
        (lambda: StopOnScore([]), "needs general rows"),
        (lambda: StopOnScore(conversations(1), drop=-1.0), "stop_drop"),
        (lambda: StopOnScore(conversations(1), every=0), "stop_every"),
        (lambda: WeightNormCap(0.0), "weight_norm must be"),
    ],
)
def test_wrong_options(make_wrong: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_wrong()


def test_a_full_finetune_has_no_adapter_to_measure(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    options = {"mitigations": [WeightNormCap(1.0)]}
    with pytest.raises(ConfigError, match="measures a LoRA"):
        make_trainer(tiny_model("llama"), lora=False, trainer=options, kv_weight=0.0)
