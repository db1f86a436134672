"""A finetuned model, its base, and an ear on its `generate`, for tests of patching."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

WINDOWS = ("mistral", "gemma2", "gemma3", "gpt_oss")
ARCHITECTURES = ("llama", "qwen2", "qwen3", "qwen3_moe", "phi3", "olmo2", *WINDOWS)
WINDOW = 16
"""Shorter than a rendered chat, but reaching from the answer into the prefix."""

FLOAT32_ONLY = ("qwen3_moe", "gpt_oss", "gemma2")
"""Expert kernels know no float64; Gemma-2's eager attention in float64 makes NaN of padding."""


def precise(model: Any) -> Any:
    """In float64, where the architecture can."""
    return model if model.config.model_type in FLOAT32_ONLY else model.double()


def add_noise(module: Any, scale: float = 0.03) -> None:
    """Noise on every weight, as a finetune would leave it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_((scale * noise).to(parameter))


def pair(tiny_model: Callable[..., Any], name: str, **overrides: Any) -> tuple[Any, Any]:
    """A finetuned model and its base: the base with noise on every weight."""
    base, tuned = (precise(tiny_model(name, **overrides)) for _ in range(2))
    add_noise(tuned)
    return tuned, base


def chat_pair(tiny_model: Callable[..., Any], name: str, **overrides: Any) -> tuple[Any, Any]:
    """As `pair`; sliding windows suit chats of `chat_tokenizer`."""
    window = {"sliding_window": WINDOW} if name in WINDOWS else {}
    return pair(tiny_model, name, **window, **overrides)


def adapted(base: Any) -> Any:
    """A model with a LoRA on it whose weights are random."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(base, config).eval()


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Equal up to rounding; generated logits and rotary angles are float32 in every model."""
    exact = 1e-6 if found.dtype == torch.float64 else 2e-5
    atol = exact if expected.dtype == torch.float64 else 2e-4
    torch.testing.assert_close(found, expected, rtol=0, atol=atol, check_dtype=False)


class Spy:
    """Keeps what `generate` of a model returns, with the logits of each step."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.outputs: list[Any] = []
        original = model.generate

        def spy(**kwargs: Any) -> Any:
            options = {"return_dict_in_generate": True, "output_logits": True, **kwargs}
            self.outputs.append(original(**options))
            return self.outputs[-1]

        monkeypatch.setattr(model, "generate", spy)
