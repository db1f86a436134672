"""Small training runs: a handful of conversations, a tiny model, a few steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig
from training_helpers import LORA, conversations
from transformers import PreTrainedTokenizerBase

from treft.training import TReFTConfig, TReFTTrainer


@pytest.fixture
def make_trainer(
    chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> Callable[..., TReFTTrainer]:
    """`make_trainer(model, rows, lora=True, **config)`: float32 on the CPU, logging each step."""

    def make(
        model: Any,
        rows: list[dict[str, Any]] | None = None,
        *,
        lora: bool = True,
        trainer: dict[str, Any] | None = None,
        **config: Any,
    ) -> TReFTTrainer:
        options = {
            "output_dir": str(tmp_path / "run"),
            "kv_weight": 5.0,
            "max_steps": 3,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
            **config,
        }
        arguments = {
            "train_dataset": Dataset.from_list(rows or conversations()),
            "processing_class": chat_tokenizer,
            **(trainer or {}),
        }
        if lora:
            arguments["peft_config"] = LoraConfig(**LORA)
        return TReFTTrainer(model, TReFTConfig(**options), **arguments)

    return make
