"""Two processes that share a batch train as one process does (gloo, on the CPU)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = """
import sys
from pathlib import Path

sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]) / "integration")]
import torch
from conftest import build_tiny_model
from datasets import Dataset
from peft import LoraConfig
from training_helpers import LORA, conversations, disturb, entries, trained
from transformers import AutoTokenizer
from treft.training import TReFTConfig, TReFTTrainer

folder, num_processes = Path(sys.argv[2]), int(sys.argv[3])
config = TReFTConfig(
    str(folder / f"run{num_processes}"),
    kv_weight=30.0,
    max_steps=2,
    per_device_train_batch_size=4 // num_processes,
    gradient_accumulation_steps=2,
    optim="sgd",
    learning_rate=0.5,
    logging_steps=1,
    save_strategy="no",
    report_to="none",
    use_cpu=True,
    bf16=False,
    ddp_backend="gloo" if num_processes > 1 else None,
)
trainer = TReFTTrainer(
    build_tiny_model("llama"),
    config,
    train_dataset=Dataset.from_list(conversations(16)),
    eval_dataset=Dataset.from_list(conversations(8)),
    processing_class=AutoTokenizer.from_pretrained(folder / "tokenizer"),
    peft_config=LoraConfig(**LORA),
)
disturb(trainer)
trainer.train()
metrics = trainer.evaluate()
if trainer.is_world_process_zero():
    found = {
        "weights": trained(trainer),
        "log": [entries(trainer, name) for name in ("loss", "kv_penalty", "sft_loss")],
        "eval": [metrics[f"eval_{name}"] for name in ("loss", "kv_penalty")],
    }
    torch.save(found, folder / f"{num_processes}.pt")
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path, chat_tokenizer: object) -> None:
    chat_tokenizer.save_pretrained(tmp_path / "tokenizer")
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    tests = Path(__file__).parents[1]
    found = []
    for num_processes in (1, 2):
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command = [*(launch if num_processes > 1 else []), str(worker), str(tests), str(tmp_path)]
        subprocess.run(
            [sys.executable, *command, str(num_processes)],
            check=True,
            capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=300,
        )
        found.append(torch.load(tmp_path / f"{num_processes}.pt"))
    one, two = found
    for name in ("log", "eval"):
        torch.testing.assert_close(torch.tensor(two[name]), torch.tensor(one[name]))
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value)
