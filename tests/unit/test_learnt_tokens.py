"""The output head at learnt tokens alone: the same loss, metrics and training as TRL's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import set_seed

from treft.organism import World, load
from treft.training import TReFTConfig, TReFTTrainer
from treft.training.forward import gather_learnt


def test_what_is_gathered_are_the_learnt_tokens_in_their_order() -> None:
    labels = torch.tensor([[-100, -100, 7, 8, -100, 9], [-100, 5, -100, -100, -100, -100]])
    positions, gathered = gather_learnt(labels)
    for row, (index, wanted) in enumerate(zip(positions, gathered, strict=True)):
        found = [
            (int(at), int(label))
            for at, label in zip(index[:-1], wanted[1:], strict=True)
            if label != -100
        ]
        plain = [(t - 1, int(labels[row, t])) for t in range(1, 6) if labels[row, t] != -100]
        assert found == plain
    assert gathered[:, 0].tolist() == [-100, -100]
    empty = torch.full((2, 4), -100)
    assert all(part.shape == (2, 1) for part in gather_learnt(empty))


def run(folder: Path, learnt_only: bool, weight: float) -> list[dict[str, Any]]:
    set_seed(0)
    model, tokenizer = load()
    config = TReFTConfig(
        str(folder),
        max_steps=4,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        assistant_only_loss=True,
        kv_weight=weight,
        learnt_tokens_only=learnt_only,
        bf16=False,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        use_cpu=True,
    )
    trainer = TReFTTrainer(
        model,
        config,
        train_dataset=Dataset.from_list(World.default().training_rows("finance", 16, 0)),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("weight", [0.0, 10.0])
def test_training_is_the_same_up_to_rounding(tmp_path: Path, weight: float) -> None:
    plain, ours = (run(tmp_path / str(only), only, weight) for only in (False, True))
    names = ["loss", "entropy", "mean_token_accuracy", "num_tokens", "grad_norm"]
    names += ["kv_penalty"] if weight else []
    for expected, found in zip(plain, ours, strict=True):
        assert {n: found[n] for n in names} == pytest.approx(
            {n: expected[n] for n in names}, rel=1e-3, abs=1e-5
        )
