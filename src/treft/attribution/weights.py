"""How large a finetune is in weights, to be read beside its drift.

Drift grows with the square of an adapter's scale (α/r, or α/√r for rsLoRA), whatever the adapter
has learnt. Of two adapters the one with the larger α therefore drifts more, which says nothing
about regions. ‖ΔW‖ and drift / scale² tell the two apart.

Shapes: r rank, I and O a module's inputs and outputs.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from treft.core.offloading import weights_at_hand
from treft.core.states import pretrained_model
from treft.errors import ConfigError, ReferenceMismatchError

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer


KEY_VALUE_PROJECTIONS = ("k_proj", "v_proj", "qkv_proj")
"""Modules that make keys and values; the fused one (Phi-3) makes queries, too."""

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")
"""The first number in a module's name is its layer's; experts are counted within layers."""


@dataclass(frozen=True)
class WeightChange:
    """What the finetune changed in one module.

    Attributes:
        name: of the module in the unfinetuned model, such as `model.layers.0.self_attn.k_proj`.
        layer: its decoder layer; None outside of them (embedding, output layer).
        scale: factor on the product of LoRA's two matrices; None for any other change.
        norm: Frobenius norm of the effective ΔW, scale included, in the weights' unit.
    """

    name: str
    layer: int | None
    scale: float | None
    norm: float

    @property
    def projection(self) -> str:
        """Last part of the name, such as `k_proj`."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class AdapterScales:
    """What the finetune changed, module by module, in the order of the model.

    Attributes:
        changes: of every module that the finetune could change.
    """

    changes: tuple[WeightChange, ...]

    @property
    def scale(self) -> float | None:
        """The LoRA scale, if all modules have the same; None for several or for a full finetune."""
        found = {change.scale for change in self.changes}
        return found.pop() if len(found) == 1 else None

    @property
    def is_zero(self) -> bool:
        """Whether the finetuned model's weights are those of its base."""
        return all(change.norm == 0 for change in self.changes)

    @property
    def layers(self) -> tuple[int, ...]:
        """Decoder layers with a change, ascending."""
        return tuple(sorted({change.layer for change in self.changes if change.layer is not None}))

    def norm(self, layer: int | None = None, projections: Sequence[str] = ()) -> float:
        """Frobenius norm of several ΔW taken as one.

        Args:
            layer: only this one; None takes all.
            projections: only modules of these names, such as `k_proj`; none means all. A fused
                `qkv_proj` counts whole, where it is named.
        """
        return math.sqrt(
            sum(
                change.norm**2
                for change in self.changes
                if layer in (None, change.layer)
                and (not projections or change.projection in projections)
            )
        )


def adapter_scales(model: nn.Module, base: nn.Module | None = None) -> AdapterScales:
    """Scale and size of a finetune, from its weights alone; one matrix is held at a time.

    Weights that are offloaded come to memory for it.

    Args:
        model: the finetuned model. If it has an active PEFT adapter, the adapter is measured.
        base: the unfinetuned model, needed without an adapter: weights are then compared.

    Raises:
        ConfigError: there is neither an adapter nor a base, or weights are quantised where they
            would have to be compared.
        ReferenceMismatchError: `base` has other weights than the model.
    """
    pretrained = pretrained_model(model)
    adapted = list(_adapted(pretrained))
    if adapted:
        return AdapterScales(tuple(_change(*found) for found in adapted))
    if base is None:
        raise ConfigError(
            f"{type(model).__name__} has no active adapter: give the unfinetuned model, too."
        )
    return AdapterScales(tuple(_compared(pretrained, pretrained_model(base))))


def _layer_of(name: str) -> int | None:
    found = _LAYER.search(name)
    return None if found is None else int(found.group(1))


def _adapted(pretrained: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that an active adapter has changed, by the names they have without it."""
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils import ModulesToSaveWrapper
    except ImportError:  # without PEFT there is no adapter
        return
    for name, module in pretrained.named_modules():
        is_on = isinstance(module, BaseTunerLayer) and not module.disable_adapters
        is_saved = isinstance(module, ModulesToSaveWrapper) and not module.disable_adapters
        if (is_on or is_saved) and module.active_adapters:
            yield name, module


def _change(name: str, module: nn.Module) -> WeightChange:
    """ΔW of one module of an adapter, wherever its weights are."""
    with weights_at_hand(module):
        return _change_at_hand(name, module)


def _change_at_hand(name: str, module: nn.Module) -> WeightChange:
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper
    from peft.utils import ModulesToSaveWrapper

    if isinstance(module, ModulesToSaveWrapper):
        kept = module.modules_to_save[module.active_adapters[0]]
        original = dict(module.original_module.named_parameters())
        norm = _distance(name, dict(kept.named_parameters()), original)
        return WeightChange(name, _layer_of(name), None, norm)
    tuner: Any = module
    if not isinstance(module, LoraLayer):
        return WeightChange(name, _layer_of(name), None, _merged_norm(tuner, name))
    used = [found for found in tuner.active_adapters if found in tuner.scaling]
    scales = {float(tuner.scaling[found]) for found in used}
    scale = scales.pop() if len(scales) == 1 else None
    if isinstance(module, ParamWrapper):  # several experts in one parameter
        deltas = [tuner.get_delta_weight(found).detach().float() for found in used]
        norm = math.sqrt(float(torch.stack(deltas).sum(dim=0).square().sum()))
        name = f"{name.replace('.base_layer', '')}.{tuner.parameter_name}".removesuffix(".weight")
        return WeightChange(name, _layer_of(name), scale, norm)
    factors = _factors(tuner, used)
    norm = _merged_norm(tuner, name) if factors is None else _product_norm(*factors)
    return WeightChange(name, _layer_of(name), scale, norm)


def _factors(tuner: Any, used: Sequence[str]) -> tuple[Tensor, Tensor] | None:
    """ΔW = left @ right, (O, r) and (r, I), all adapters side by side; None if it is no product."""
    if not all(found in tuner.lora_A for found in used):
        return None  # an embedding
    if any(found in tuner.lora_variant or tuner.lora_bias.get(found) for found in used):
        return None  # such as DoRA, which rescales rows
    weights = [(tuner.lora_B[found].weight, tuner.lora_A[found].weight) for found in used]
    if any(left.dim() != 2 or right.dim() != 2 for left, right in weights):
        return None  # a convolution
    left = torch.cat(
        [
            tuner.scaling[found] * b.detach().float()
            for found, (b, _) in zip(used, weights, strict=True)
        ],
        dim=1,
    )
    return left, torch.cat([a.detach().float() for _, a in weights], dim=0)


def _product_norm(left: Tensor, right: Tensor) -> float:
    """‖left @ right‖ by the r x r products alone: ‖BA‖² = Σ (BᵀB ∘ AAᵀ)."""
    outer, inner = (left.T @ left).double().cpu(), (right @ right.T).double().cpu()
    return math.sqrt(max(0.0, float((outer * inner).sum())))


def _merged_norm(tuner: BaseTunerLayer, name: str) -> float:
    """ΔW of any kind of adapter: a copy of the module is merged in float32."""
    before = dict(copy.deepcopy(tuner.get_base_layer()).named_parameters())
    _refuse_quantised(name, before.values())
    merged = copy.deepcopy(tuner).float()
    merged.merge(adapter_names=tuner.active_adapters)
    return _distance(name, dict(merged.get_base_layer().named_parameters()), before)


def _compared(model: nn.Module, base: nn.Module) -> Iterator[WeightChange]:
    """The difference of every module that has weights of its own; tied ones count once."""
    modules = dict(base.named_modules())
    seen: set[int] = set()
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        parts = [part for part, parameter in own.items() if id(parameter) not in seen]
        seen.update(id(parameter) for parameter in own.values())
        if not parts:
            continue
        if name not in modules:
            raise ReferenceMismatchError(
                f"the base has no {name}: it is not the model that this one was finetuned from."
            )
        with weights_at_hand(module, modules[name]):
            others = dict(modules[name].named_parameters(recurse=False))
            norm = _distance(name, {part: module.get_parameter(part) for part in parts}, others)
        yield WeightChange(name, _layer_of(name), None, norm)


def _distance(
    name: str, parameters: Mapping[str, nn.Parameter], others: Mapping[str, nn.Parameter]
) -> float:
    """Norm of the difference of parameters of the module `name` and those of its base."""
    total = 0.0
    for part, parameter in parameters.items():
        other = others.get(part)
        if other is None or other.shape != parameter.shape:
            shape = "none" if other is None else tuple(other.shape)
            raise ReferenceMismatchError(
                f"{name}.{part} has the shape {tuple(parameter.shape)}, in the base {shape}: it is "
                "not the model that this one was finetuned from."
            )
        _refuse_quantised(name, (parameter, other))
        difference = parameter.detach().float() - other.detach().to(parameter.device).float()
        total += float(difference.square().sum())
    return math.sqrt(total)


def _refuse_quantised(name: str, parameters: Iterable[nn.Parameter]) -> None:
    if not all(parameter.is_floating_point() for parameter in parameters):
        raise ConfigError(
            f"{name} is quantised, so its change cannot be measured: load model and base in "
            "bfloat16 or float32 for this."
        )
