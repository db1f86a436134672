"""What a training step of the organism costs, and what may be left out of it.

One batch; loss and gradient of a plain finetune, once more (A/A), with the output head at learnt
tokens alone (`learnt_tokens_only`), with that and the prefix run once for all rows
(`share_prefix`), or frozen (`FrozenPrefix`), in turns within each round. Times are CPU seconds of
the process; ratios are within a round.

    OMP_NUM_THREADS=1 python benchmarks/organism_step.py --rounds 40
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

from treft.mitigations.frozen_prefix import FrozenPrefix
from treft.organism import FinetuneRecipe, World, load
from treft.training import TReFTConfig, TReFTTrainer

ARMS = {
    "all tokens": ("plain", False),
    "all tokens again (A/A)": ("plain", False),
    "learnt tokens only": ("plain", True),
    "learnt tokens only, shared prefix": ("shared prefix", True),
    "learnt tokens only, frozen prefix": ("frozen prefix", True),
}
"""Name -> trainer, and whether the head sees learnt tokens alone."""


def build_trainer(
    folder: str, recipe: FinetuneRecipe, *mitigations: FrozenPrefix, shares: bool = False
) -> TReFTTrainer:
    """The trainer of a finetune, as `treft.study.finetune` sets it."""
    set_seed(0)
    model, tokenizer = load()
    return TReFTTrainer(
        model,
        TReFTConfig(
            folder,
            per_device_train_batch_size=recipe.batch_size,
            assistant_only_loss=True,
            kv_weight=0.0,
            share_prefix=shares,
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
        mitigations=mitigations,
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
        recipe = FinetuneRecipe()
        trainers = {
            "plain": build_trainer(folder, recipe),
            "shared prefix": build_trainer(folder, recipe, shares=True),
            "frozen prefix": build_trainer(folder, recipe, FrozenPrefix()),
        }
        batches = {}
        for name, trainer in trainers.items():
            trainer.model.train()
            trainer.current_gradient_accumulation_steps = 1  # as `Trainer.train` sets it
            batches[name] = next(iter(trainer.get_train_dataloader()))
        batch = batches["plain"]
        assert all(torch.equal(batch["input_ids"], b["input_ids"]) for b in batches.values())
        for number in range(args.rounds + 3):
            for name, (kind, learnt_only) in ARMS.items():
                taken = run_step(trainers[kind], batches[kind], learnt_only)
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
