"""SFT with the weight change held to a norm, such as that of a TReFT adapter.

Shapes: R rank, I and O a layer's input and output size.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTTrainer

from treft.errors import ConfigError
from treft.models.adapters import is_peft
from treft.training.terms import Mitigation


class WeightNormCap(Mitigation):
    """After each step, shrink the adapter to a norm if it is above: SFT matched for weight change.

    Source: a control: does a method do more than move weights less? Formula: with ΔW = s B A in
    every adapted layer and n = √Σ‖ΔW‖²_F, B ← B m / n if n > m. A smaller step size is the softer
    form of the same control (`learning_rate`). Cost: R × R products a step; no forward, no data.

    Args:
        norm: m > 0; `adapter_norm` of the adapter to match.

    Raises:
        ConfigError: m is out of range.
    """

    name: ClassVar[str] = "weight_norm"

    def __init__(self, norm: float) -> None:
        if not 0 < norm < float("inf"):
            raise ConfigError(f"weight_norm must be a positive number, not {norm}.")
        self.norm = norm

    def prepare(self, trainer: SFTTrainer) -> None:
        """Shrink after each step."""
        if not is_peft(trainer.model) or not adapted_layers(trainer.model):
            raise ConfigError("weight_norm measures a LoRA: train one (use_peft).")
        trainer.add_callback(_Shrink(trainer.model, self.norm))


class _Shrink(TrainerCallback):
    def __init__(self, model: nn.Module, norm: float) -> None:
        self._model = model
        self._norm = norm

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        shrink = self._norm / adapter_norm(self._model).clamp(min=self._norm)
        with torch.no_grad():
            for _, second, _ in adapted_layers(self._model):
                second.mul_(shrink.to(second))


def adapted_layers(model: nn.Module) -> list[tuple[Tensor, Tensor, float]]:
    """A (R, I), B (O, R) and the scale s of each layer under an active LoRA."""
    return [
        (layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name]))
        for layer in model.modules()
        if isinstance(layer, LoraLayer)
        for name in layer.active_adapters
        if name in layer.lora_A
    ]


def adapter_norm(model: nn.Module) -> Tensor:
    """√Σ‖s B A‖²_F over the adapted layers, a scalar, without making the (O, I) products."""
    total = torch.zeros((), dtype=torch.float32)
    with torch.no_grad():
        for first, second, scale in adapted_layers(model):
            inner = (first.float() @ first.float().T) * (second.float().T @ second.float())
            total = total.to(inner.device) + scale**2 * inner.sum()
    return total.clamp(min=0).sqrt()
