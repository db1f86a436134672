"""PEFT's adapters around a model: off, on, alone, kept as they were, and which one trains."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from treft.core.offloading import is_offloaded, weights_at_hand
from treft.core.recording import RecordedStates, ReferenceRequest, Source, other_model, record
from treft.errors import ConfigError, first_line

if TYPE_CHECKING:
    from peft import PeftModel


KEPT_ADAPTER = "treft_reference"
"""Name of the frozen copy of an adapter that is trained further; checkpoints carry it along."""


def find_peft(model: nn.Module) -> PeftModel | None:
    """The PEFT wrapper in `model`; None if there is none (also when PEFT is not installed)."""
    try:
        from peft import PeftModel
    except ImportError:
        return None
    return next((each for each in model.modules() if isinstance(each, PeftModel)), None)


def is_peft(model: nn.Module) -> bool:
    """Returns whether `model` is a PEFT model."""
    return find_peft(model) is model


def adapter_off(model: nn.Module) -> Source:
    """The reference is `model` with its adapter switched off.

    Raises:
        ConfigError: there is no adapter to switch off.
    """
    _peft_model(model)

    def source(requests: Sequence[ReferenceRequest]) -> list[RecordedStates]:
        with without_adapter(model):
            return record(model, requests)

    return source


def base_source(model: nn.Module, base: nn.Module | None = None) -> Source:
    """The reference of a finetuned `model` is `base`, or else `model` with its adapter off.

    Raises:
        ConfigError: there is neither a base nor an adapter to switch off.
    """
    return adapter_off(model) if base is None else other_model(base)


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """The adapter is off inside; which parameters are trained stays as it was.

    Raises:
        ConfigError: there is no adapter to switch off.
    """
    peft_model = _peft_model(model)
    with _same_trainable(peft_model), peft_model.disable_adapter():
        yield


@contextmanager
def only_adapter(model: nn.Module, name: str) -> Iterator[None]:
    """The adapter `name` alone is on inside; which parameters are trained stays as it was.

    Raises:
        ConfigError: there is no adapter of that name.
    """
    peft_model = _peft_model(model)
    if name not in peft_model.peft_config:
        raise ConfigError(
            f"the model has no adapter {name!r}, only {sorted(peft_model.peft_config)}: add the "
            "copy with model.load_adapter(path, adapter_name=...) before training."
        )
    active = list(peft_model.active_adapters)
    with _same_trainable(peft_model):
        try:
            peft_model.base_model.set_adapter(name)
            yield
        finally:
            peft_model.base_model.set_adapter(active)


def _peft_model(model: nn.Module) -> PeftModel:
    """Returns the PEFT wrapper in `model`."""
    found = find_peft(model)
    if found is None:
        raise ConfigError(
            f"{type(model).__name__} has no PEFT adapter, so the model from before the finetune "
            "cannot be had by switching one off: use other_model(base), or record a reference "
            "beforehand."
        )
    return found


@contextmanager
def _same_trainable(model: nn.Module) -> Iterator[None]:
    """Give back each parameter's `requires_grad`, which PEFT resets when it switches adapters."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def trained_adapter(model: PeftModel) -> str:
    """Name of the one adapter that trains.

    Raises:
        ConfigError: it puts virtual tokens before the prompt, or several adapters are active.
    """
    names = [model.active_adapter] if isinstance(model.active_adapter, str) else []
    names = names or list(model.active_adapters)
    if len(names) != 1:
        raise ConfigError(
            f"{len(names)} adapters are active: merge all but the one to train into the model, or "
            "record the reference beforehand (treft reference record) and pass kv_reference."
        )
    if model.peft_config[names[0]].is_prompt_learning:
        raise ConfigError(
            "adapters that put virtual tokens before the prompt (prompt or prefix tuning) move the "
            "regions; use LoRA or another adapter of the weights, or kv_weight=0."
        )
    return names[0]


def only_adapter_trains(model: nn.Module, adapter: str) -> bool:
    """Returns whether nothing but this adapter has gradient."""
    return all(
        adapter in name.split(".")
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    )


def is_fresh(model: nn.Module, adapter: str) -> bool:
    """Whether the adapter is a LoRA that has not been trained: one factor of each pair is zero.

    Initialisations that change the base weights too (PiSSA, OLoRA) have no zero factor, so they
    count as trained, and rightly: only with the adapter on is the model the original one.
    """
    pairs: dict[str, bool] = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if adapter not in parts or not any(part.startswith("lora_") for part in parts):
            continue
        if any(part.endswith(("_A", "_B")) for part in parts):
            owner = name.split(".lora_")[0]
            pairs[owner] = pairs.get(owner, False) or not bool(parameter.detach().any())
    return bool(pairs) and all(pairs.values())


def keep_adapter(model: PeftModel) -> None:
    """Add a frozen copy of the adapter that trains; the random state is left as it was."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    if KEPT_ADAPTER in model.peft_config:
        return
    adapter = trained_adapter(model)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with torch.random.fork_rng():
        model.add_adapter(KEPT_ADAPTER, copy.deepcopy(model.peft_config[adapter]))
    weights = get_peft_model_state_dict(model, adapter_name=adapter)
    set_peft_model_state_dict(model, weights, adapter_name=KEPT_ADAPTER)
    model.set_adapter(adapter)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(flags.get(name, False))


def put_adapter_on(model: PreTrainedModel, base: str, adapter: str) -> PeftModel:
    """Returns the model with a saved adapter on it.

    Args:
        model: the base; its layers may be offloaded.
        base: its name, for errors.
        adapter: folder or hub id.

    Raises:
        ConfigError: the adapter does not fit, or weights are missing or have no place.
    """
    put_on = _put_on_offloaded if is_offloaded(model) else _put_on
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of missing weights; they are an error here
            found, astray = put_on(model, adapter)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ConfigError(
            f"the adapter {adapter} does not fit on {base}, it may belong to another base: "
            f"{first_line(error)}"
        ) from error
    if astray:
        raise ConfigError(
            f"the adapter {adapter} does not fit on {base}, it belongs to another base: "
            f"{len(astray)} weights are missing or have no place, such as {astray[0]}."
        )
    return found


def _put_on(model: PreTrainedModel, adapter: str) -> tuple[PeftModel, list[str]]:
    """The model with its adapter, and weights that are missing or have no place."""
    from peft import PeftModel

    found = PeftModel.from_pretrained(model, adapter)
    # Once more, since only this call says which weights found no place.
    loaded = found.load_adapter(adapter, "default")
    return found, [*loaded.missing_keys, *loaded.unexpected_keys]


def _put_on_offloaded(model: PreTrainedModel, adapter: str) -> tuple[PeftModel, list[str]]:
    """Do the same where layers are elsewhere between forwards; adapter weights stay in memory.

    PEFT's own way would place all layers anew and write the base's weights once more, to a path
    relative to the current folder.
    """
    from peft import (
        PeftConfig,
        get_peft_model,
        get_peft_model_state_dict,
        load_peft_weights,
        set_peft_model_state_dict,
    )
    from peft.tuners.tuners_utils import BaseTunerLayer

    config = PeftConfig.from_pretrained(adapter)
    config.inference_mode = True
    found = cast("PeftModel", get_peft_model(model, config, low_cpu_mem_usage=True))
    for layer in found.modules():
        if isinstance(layer, BaseTunerLayer):
            with weights_at_hand(layer.get_base_layer()):  # where its forward will run
                device = next(layer.get_base_layer().parameters()).device
            for name in layer.adapter_layer_names:
                getattr(layer, name).to_empty(device=device)
    weights = load_peft_weights(adapter, device="cpu")
    loaded = set_peft_model_state_dict(found, weights)
    missing = get_peft_model_state_dict(found).keys() - weights.keys()
    return found, [*loaded.unexpected_keys, *sorted(missing)]
