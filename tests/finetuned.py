"""A finetuned model, its base, and an ear on its `generate`, for tests of patching."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

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


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Equal up to rounding; rotary angles and generated logits are float32 in every model."""
    double = found.dtype == expected.dtype == torch.float64
    torch.testing.assert_close(
        found, expected, rtol=0, atol=1e-6 if double else 2e-4, check_dtype=False
    )


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
