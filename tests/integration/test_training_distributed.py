"""Two processes that share a batch train as one process does (gloo, on the CPU)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = """
import json
import sys
from pathlib import Path

sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]) / "integration")]
import torch
from tiny_models import build_tiny_model
from datasets import Dataset
from peft import LoraConfig
from training_helpers import LORA, conversations, disturb, entries, trained
from transformers import AutoTokenizer
from treft.training import TReFTConfig, TReFTTrainer

folder, num_processes = Path(sys.argv[2]), int(sys.argv[3])
config = TReFTConfig(
    str(folder / f"run{num_processes}"),
    **json.loads(sys.argv[4]),
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
weights = [torch.tensor([trainer._penalty.regularizer.weight])]
if num_processes > 1:
    weights = [torch.zeros(1) for _ in range(num_processes)]
    torch.distributed.all_gather(weights, torch.tensor([trainer._penalty.regularizer.weight]))
assert all(torch.equal(weight, weights[0]) for weight in weights)  # all ranks agree
if trainer.is_world_process_zero():
    found = {
        "weights": trained(trainer),
        "log": [entries(trainer, name) for name in ("loss", "kv_penalty", "sft_loss")],
        "weight": entries(trainer, "kv_weight"),
        "eval": [metrics[f"eval_{name}"] for name in ("loss", "kv_penalty")],
    }
    torch.save(found, folder / f"{num_processes}.pt")
"""


FIXED = {"kv_weight": 30.0}
AUTO = {
    "kv_weight": "auto",
    "kv_budget": 0.02,
    "kv_weight_start": 30.0,
    "kv_regions": ["prefix", "postfix"],
    "kv_region_weights": {"prefix": 1.0, "postfix": 0.3},
}
SHARED = {
    **FIXED,
    "share_prefix": True,
    "gradient_checkpointing": False,
    "assistant_only_loss": True,
}


@pytest.mark.slow
@pytest.mark.parametrize("options", [FIXED, AUTO, SHARED], ids=["fixed", "auto", "shared"])
def test_two_processes_equal_one(
    options: dict[str, object], tmp_path: Path, chat_tokenizer: object
) -> None:
    chat_tokenizer.save_pretrained(tmp_path / "tokenizer")
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    tests = Path(__file__).parents[1]
    found = []
    for num_processes in (1, 2):
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command = [*(launch if num_processes > 1 else []), str(worker), str(tests), str(tmp_path)]
        subprocess.run(
            [sys.executable, *command, str(num_processes), json.dumps(options)],
            check=True,
            capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=300,
        )
        found.append(torch.load(tmp_path / f"{num_processes}.pt"))
    one, two = found
    assert len(one["weight"]) == (2 if options is AUTO else 0)
    for name in ("log", "eval", "weight"):
        torch.testing.assert_close(torch.tensor(two[name]), torch.tensor(one[name]))
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value)
