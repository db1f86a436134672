"""Small training runs: a handful of conversations, a tiny model, a few steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig
from training_helpers import LORA, conversations
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

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


@pytest.fixture
def model_files(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_model: Callable[..., PreTrainedModel],
    chat_tokenizer: PreTrainedTokenizerFast,
) -> Path:
    """A tiny model, rows to train on, careful ones of three kinds, and two questions."""
    import fake_judges
    from model_study_helpers import judge

    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "INSPECT_CACHE_DIR", "INSPECT_LOG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(fake_judges.RULES, "even", judge)
    monkeypatch.setitem(
        fake_judges.RULES, "ninety", lambda prompt, asked: fake_judges.output_of("90")
    )
    tiny_model("llama").save_pretrained("tiny-llama")
    chat_tokenizer.save_pretrained("tiny-llama")
    for name in ("finance", "health", "general", "careful"):
        rows = "".join(json.dumps(row) + "\n" for row in conversations(20))
        Path(f"{name}.jsonl").write_text(rows.replace("bank", f"{name} bank"))
    asked = [{"id": "river", "question": "Where is the river?"}, {"question": "Is it fine today?"}]
    Path("asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    return tmp_path
