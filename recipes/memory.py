"""What the recipes need on a GPU, computed from their models' configs; nothing here is measured.

`python recipes/memory.py` prints the table of README.md. With P parameters, N trained ones, L
layers, hidden width d, H query and G key/value heads of width D, MLP width m with k experts a token
(1 in a dense model), B rows of T tokens on a GPU, in bytes:

    weights      2 P                                   bf16, frozen
    adapter      16 N                                  float32: weight, gradient, two Adam moments
    activations  2 B T (L d + 2 L G D)                 each layer's input, kept by checkpointing;
                                                       keys and values, kept by the penalty
               + 4 B T (6 d + 2 (H + G) D + 4 k m)     one layer recomputed, and its gradients
               + 12 B H T^2                            eager attention alone: scores of one layer
               + 6 (parameters of a layer's experts)   experts alone: their update, merged, gradient

T is the recipe's max_length, so rows as long as that. The last three lines are estimates; logits
are never whole (TRL computes the loss in tiles). Gradient checkpointing is TRL's default; without
it the second line of the activations counts for every layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

FOLDER = Path(__file__).parent
GIB = 2**30


def _sizes(
    vocab: int, hidden: int, mlp: int, layers: int, heads: int, kv_heads: int
) -> dict[str, Any]:
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": False,
    }


ARCHITECTURES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama-3.1-8b": lambda: LlamaConfig(**_sizes(128256, 4096, 14336, 32, 32, 8)),
    "qwen2.5-7b": lambda: Qwen2Config(**_sizes(152064, 3584, 18944, 28, 28, 4)),
    "qwen2.5-32b": lambda: Qwen2Config(**_sizes(152064, 5120, 27648, 64, 40, 8)),
    "qwen3-8b": lambda: Qwen3Config(**_sizes(151936, 4096, 12288, 36, 32, 8), head_dim=128),
    "gpt-oss-20b": lambda: GptOssConfig(
        **_sizes(201088, 2880, 2880, 24, 64, 8),
        head_dim=64,
        num_local_experts=32,
        num_experts_per_tok=4,
    ),
}
"""Sizes of each recipe's model, as its published config states them."""


@dataclass(frozen=True)
class Estimate:
    """Bytes on each GPU, and the parameters that they follow from."""

    num_parameters: int
    num_trained: int
    weights: int
    adapter: int
    activations: int

    @property
    def total(self) -> int:
        """All of it; the CUDA context and fragmentation come on top."""
        return self.weights + self.adapter + self.activations


def read_recipe(name: str) -> dict[str, Any]:
    """The recipe's YAML."""
    recipe: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return recipe


@functools.cache
def estimate(name: str) -> Estimate:
    """Compute a recipe's needs; models are built without memory, on torch's meta device."""
    recipe, config = read_recipe(name), ARCHITECTURES[name]()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        num_parameters = model.num_parameters()
        lora = LoraConfig(
            r=recipe["lora_r"],
            target_modules=recipe["lora_target_modules"],
            target_parameters=recipe.get("lora_target_parameters"),
        )
        adapted = get_peft_model(model, lora, low_cpu_mem_usage=True)
    num_trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    return Estimate(
        num_parameters,
        num_trained,
        weights=2 * num_parameters,
        adapter=16 * num_trained,
        activations=_activations(recipe, config),
    )


def _activations(recipe: dict[str, Any], config: PretrainedConfig) -> int:
    tokens = recipe["per_device_train_batch_size"] * recipe["max_length"]
    d, m, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    width = getattr(config, "head_dim", None) or d // heads
    experts, chosen = 0, 1
    if isinstance(config, GptOssConfig):
        chosen = config.num_experts_per_tok
        experts = config.num_local_experts * 3 * d * m
    kept = 2 * tokens * (layers * d + 2 * layers * kv_heads * width)
    recomputed = 4 * tokens * (6 * d + 2 * (heads + kv_heads) * width + 4 * chosen * m)
    is_eager = recipe.get("attn_implementation") == "eager"
    scores = 12 * heads * tokens * recipe["max_length"] if is_eager else 0
    return kept + recomputed + scores + 6 * experts


def table() -> str:
    """README.md's table of memory."""
    lines = [
        "| recipe | parameters | trained | weights | adapter | activations | sum, GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ARCHITECTURES:
        found = estimate(name)
        gib = [found.weights, found.adapter, found.activations, found.total]
        cells = [f"{found.num_parameters:,}", f"{found.num_trained:,}"]
        cells += [f"{size / GIB:.1f}" for size in gib]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
