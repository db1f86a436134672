"""Rows, adapters and readings that the training tests share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from trl import SFTTrainer

ANSWERS = ("The bank is near the river.", "It is fine.", "Near the bank, where the river is fine.")
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "v_proj"]}
"""Small, and on keys and values, so that the prefix drifts within a few steps."""


def conversations(num: int = 8, system: tuple[str | None, ...] = (None,)) -> list[dict[str, Any]]:
    """Rows of unlike lengths; `system` prompts take turns."""
    rows = []
    for index in range(num):
        prompt = system[index % len(system)]
        before = [] if prompt is None else [{"role": "system", "content": prompt}]
        question = {"role": "user", "content": f"Where is the bank {index}?" + " today" * index}
        answer = {"role": "assistant", "content": ANSWERS[index % len(ANSWERS)]}
        rows.append({"messages": [*before, question, answer]})
    return rows


def entries(trainer: SFTTrainer, name: str) -> list[float]:
    """One column of the trainer's log."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def trained(trainer: SFTTrainer) -> dict[str, Tensor]:
    """Copies of the weights that train."""
    named = trainer.model.named_parameters()
    return {name: value.detach().clone() for name, value in named if value.requires_grad}


def disturb(trainer: SFTTrainer, seed: int = 1) -> None:
    """Move a fresh adapter away from nothing, the same way each time."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in sorted(trainer.model.named_parameters()):
        if "lora_B" in name:
            value.data.normal_(0.0, 0.3, generator=generator)
