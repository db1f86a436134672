"""Tiny random models of ten architectures, built offline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.models.auto import AutoModelForCausalLM

VOCAB_SIZE = 320
SLIDING_WINDOW = 8
"""Shorter than every test sequence, so that a lost window shows."""

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attn_implementation": "sdpa",
}


def _config(kind: type[PretrainedConfig], **overrides: Any) -> PretrainedConfig:
    return kind(**{**COMMON, **overrides})


CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: _config(LlamaConfig),
    "qwen2": lambda: _config(Qwen2Config),
    "qwen3": lambda: _config(Qwen3Config),
    "qwen3_moe": lambda: _config(
        Qwen3MoeConfig, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
    "mistral": lambda: _config(MistralConfig, sliding_window=SLIDING_WINDOW),
    "phi3": lambda: _config(Phi3Config),
    "olmo2": lambda: _config(Olmo2Config),
    "gemma2": lambda: _config(
        Gemma2Config, sliding_window=SLIDING_WINDOW, attn_implementation="eager"
    ),
    "gemma3": lambda: _config(
        Gemma3TextConfig,
        num_hidden_layers=3,
        sliding_window=SLIDING_WINDOW,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "gpt_oss": lambda: _config(
        GptOssConfig,
        num_local_experts=4,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        num_experts_per_tok=2,
        sliding_window=SLIDING_WINDOW,
        attn_implementation="eager",
    ),
}
ARCHITECTURES = tuple(CONFIGS)


def build_tiny_model(name: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random float32 model of the named architecture in eval mode.

    Weights are a few times larger than the usual initialisation, so that layers and tokens differ
    visibly and a wrong state cannot pass for a right one.
    """
    config = CONFIGS[name]()
    for key, value in overrides.items():
        setattr(config, key, value)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.12)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.float().eval()
