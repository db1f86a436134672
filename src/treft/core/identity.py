"""Which model, template and software a stored reference belongs to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from treft.core.offloading import weights_at_hand
from treft.core.states import pretrained_model

_STRUCTURE = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rope_parameters",
    "layer_types",
    "sliding_window",
    "rms_norm_eps",
)
"""Config entries that shape keys and values; others (special tokens, dropout) may change."""

_WRAPPED = {"base_layer", "original_module"}
"""Under these names a PEFT layer holds the model's own."""

NUM_SAMPLES = 32
"""Entries of each weight matrix that enter the fingerprint."""


@dataclass(frozen=True)
class Identity:
    """What must agree between a reference and the model it is used with.

    Attributes:
        model_id: hub id, or the folder's name; empty for a model built from a config.
        revision: commit of the hub repository, when known.
        template_hash: of the chat template in force; empty when not given.
        dtype: of the model's weights.
        structure: hash of the config entries that shape keys and values.
        num_layers: decoder layers.
        weights: fingerprint of the base weights (samples of each matrix), without any adapter.
        adapter: fingerprint of the adapter that was active, empty for none.
        transformers_version: only major and minor number are compared.
        treft_version: only major and minor number are compared.
    """

    model_id: str
    revision: str
    template_hash: str
    dtype: str
    structure: str
    num_layers: int
    weights: str
    adapter: str
    transformers_version: str
    treft_version: str

    def to_json(self) -> str:
        """Returns one JSON object, keys sorted."""
        return json.dumps(asdict(self), sort_keys=True)

    def differences(self, other: Identity, ignore: Collection[str] = ()) -> list[str]:
        """Returns one sentence part per field that differs: `field: mine, not other's`."""
        found = []
        for name in (entry.name for entry in fields(self) if entry.name not in ignore):
            mine, theirs = getattr(self, name), getattr(other, name)
            if _comparable(name, mine) != _comparable(name, theirs):
                found.append(f"{name}: {mine or 'none'!s}, not {theirs or 'none'!s}")
        return found


def identify(model: nn.Module, template_hash: str = "", adapter: str | None = None) -> Identity:
    """Describe a model as it is now; cheap, a few numbers of each weight matrix are read.

    Weights that are offloaded come to memory for it, matrix by matrix.

    Args:
        model: a Transformers model, possibly wrapped. An adapter's own weights do not count, so a
            base model and the same model with an adapter on top share their identity.
        template_hash: `treft.chat.regions.template_hash(tokenizer)`.
        adapter: name of the PEFT adapter whose states are the reference, none by default.
    """
    pretrained = pretrained_model(model)
    config = pretrained.config.get_text_config(decoder=True)
    entries = config.to_dict()
    structure = {name: entries.get(name) for name in _STRUCTURE}
    base, adapters = _split_parameters(pretrained)
    return Identity(
        model_id=_model_id(pretrained),
        revision=str(getattr(pretrained.config, "_commit_hash", None) or ""),
        template_hash=template_hash,
        dtype=str(pretrained.dtype).removeprefix("torch."),
        structure=_digest([json.dumps(structure, sort_keys=True, default=str).encode()]),
        num_layers=int(config.num_hidden_layers),
        weights=_fingerprint(base),
        adapter="" if adapter is None else _fingerprint(_of_adapter(adapters, adapter)),
        transformers_version=transformers.__version__,
        treft_version=version("treft"),
    )


def has_adapter(model: nn.Module) -> bool:
    """Returns whether PEFT put layers of an adapter into the model's text decoder."""
    return any(_adapter_module_names(pretrained_model(model).get_decoder()))


def _comparable(name: str, value: object) -> object:
    """Versions by major and minor number, everything else as it is."""
    return str(value).split(".")[:2] if name.endswith("_version") else value


def _model_id(pretrained: PreTrainedModel) -> str:
    name = str(pretrained.config._name_or_path or "")
    return Path(name).resolve().name if name and Path(name).is_dir() else name


class _Weight(NamedTuple):
    """A parameter by its module, since that of an offloaded module comes and goes."""

    owner: nn.Module
    part: str


NamedWeights = list[tuple[str, _Weight]]


def _split_parameters(pretrained: PreTrainedModel) -> tuple[NamedWeights, NamedWeights]:
    """The decoder's base parameters, named as if there were no adapter, and the adapters'."""
    decoder = pretrained.get_decoder()
    wrappers = set(_adapter_module_names(decoder))
    base: NamedWeights = []
    adapters: NamedWeights = []
    for name, _ in decoder.named_parameters():
        owner, _, part = name.rpartition(".")
        weight = _Weight(decoder.get_submodule(owner), part)
        plain = _name_without_wrappers(name, wrappers)
        if plain is None:
            adapters.append((name, weight))
        else:
            base.append((plain, weight))
    return base, adapters


def _name_without_wrappers(name: str, wrappers: Collection[str]) -> str | None:
    """Returns a parameter's name in the model without adapter; None if it is the adapter's."""
    parts = name.split(".")
    plain = []
    for index, part in enumerate(parts):
        if ".".join(parts[:index]) not in wrappers:
            plain.append(part)
        elif part not in _WRAPPED:
            return None
    return ".".join(plain)


def _adapter_module_names(decoder: nn.Module) -> Iterator[str]:
    """Returns names of modules that PEFT put in place of the model's, which they hold as a child.

    They are known by that child, so that PEFT need not be there.
    """
    for name, module in decoder.named_modules():
        if _WRAPPED & {child for child, _ in module.named_children()}:
            yield name


def _of_adapter(adapters: NamedWeights, adapter: str) -> NamedWeights:
    """One adapter's parameters, under names that do not depend on what it is called here."""
    marker = f".{adapter}"
    return [(name.replace(marker, ""), value) for name, value in adapters if marker in name]


def _fingerprint(weights: NamedWeights) -> str:
    return _digest(_samples(weights))


def _samples(weights: NamedWeights) -> Iterator[bytes]:
    """Name, shape and evenly spaced entries of each matrix, in order of name."""
    for name, (owner, part) in sorted(weights, key=lambda pair: pair[0]):
        if owner.get_parameter(part).dim() < 2:
            continue
        with weights_at_hand(owner):
            flat = owner.get_parameter(part).detach().reshape(-1)
            step = max(1, flat.numel() // NUM_SAMPLES)
            chosen = flat[::step][:NUM_SAMPLES].contiguous().cpu()
        yield f"{name}{tuple(owner.get_parameter(part).shape)}".encode()
        yield chosen.view(torch.uint8).numpy().tobytes()


def _digest(parts: Iterable[bytes]) -> str:
    """Returns a short hash: sixteen hexadecimal digits are ample against mistakes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]
