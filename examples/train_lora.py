"""Finetune a chat model with a LoRA adapter while its prefix keeps the keys and values it had.

    python examples/train_lora.py MODEL ROWS.jsonl OUTPUT

MODEL is a folder or hub id of a chat model, ROWS.jsonl has one {"messages": [...]} a line. The same
from the shell: treft sft --model_name_or_path MODEL --train_file ROWS.jsonl --output_dir OUTPUT
--use_peft
"""

from __future__ import annotations

import sys

import torch
from datasets import load_dataset
from peft import LoraConfig

from treft.training import TReFTConfig, TReFTTrainer


def main(model: str, rows: str, output: str) -> None:
    """Train one epoch with the prefix held at weight 10."""
    trainer = TReFTTrainer(
        model=model,
        args=TReFTConfig(
            output_dir=output,
            kv_weight=10.0,  # λ of eq. (3); sweep it on held-out questions
            kv_regions=["prefix"],
            assistant_only_loss=True,
            learning_rate=1e-4,
            num_train_epochs=1,
            logging_steps=1,
            report_to="none",
            use_cpu=not torch.accelerator.is_available(),
        ),
        train_dataset=load_dataset("json", data_files=rows, split="train"),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"),
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
