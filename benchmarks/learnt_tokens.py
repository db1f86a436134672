"""What a training step of the organism costs with the output head at learnt tokens alone.

One trainer, one batch; loss and gradient with and without `learnt_tokens_only`, in turns within
each round, and once more without (A/A). Times are CPU seconds of the process; ratios are within a
round.

    OMP_NUM_THREADS=1 python benchmarks/learnt_tokens.py --rounds 40
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import set_seed

from treft.organism import FinetuneRecipe, World, load
from treft.training import TReFTConfig, TReFTTrainer

ARMS = {"all tokens": False, "all tokens again (A/A)": False, "learnt tokens only": True}


def build_trainer(folder: str, recipe: FinetuneRecipe) -> TReFTTrainer:
    """The trainer of a plain finetune, as `treft.organism_training` sets it."""
    set_seed(0)
    model, tokenizer = load()
    return TReFTTrainer(
        model,
        TReFTConfig(
            folder,
            per_device_train_batch_size=recipe.batch_size,
            assistant_only_loss=True,
            kv_weight=0.0,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=Dataset.from_list(World.default().training_rows("finance", 64, 0)),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=recipe.lora_rank, lora_alpha=recipe.lora_alpha, target_modules="all-linear"
        ),
    )


def run_step(trainer: TReFTTrainer, batch: dict[str, Any], learnt_only: bool) -> float:
    """CPU seconds of one loss and its gradient."""
    trainer.args.learnt_tokens_only = learnt_only
    trainer.model.zero_grad()
    start = time.process_time()
    trainer.compute_loss(trainer.model, dict(batch)).backward()
    return time.process_time() - start


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(folder, FinetuneRecipe())
        trainer.model.train()
        batch = next(iter(trainer.get_train_dataloader()))
        for number in range(args.rounds + 3):
            for name, learnt_only in ARMS.items():
                taken = run_step(trainer, batch, learnt_only)
                if number >= 3:  # warm
                    seconds[name].append(taken)
    plain = seconds["all tokens"]
    found = {}
    for name, own in seconds.items():
        ratios = [a / b for a, b in zip(own, plain, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        found[name] = {
            "seconds": round(statistics.median(own), 4),
            "ratio": round(middle, 3),
            "quartiles": [round(low, 3), round(high, 3)],
        }
    learnt = int((batch["labels"] != -100).sum())
    print(json.dumps({"tokens": batch["labels"].numel(), "learnt": learnt, **found}, indent=1))


if __name__ == "__main__":
    main()
