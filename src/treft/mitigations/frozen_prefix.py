"""The hard constraint: λ → ∞, the prefix's keys and values are the unfinetuned model's.

Prefix tokens are the base's, so their states never change: they are run once, and the rows of a
batch begin behind the prefix that they share. Shapes: B rows, T tokens, N tokens of the shared
prefix, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from trl import SFTTrainer

from treft.chat.regions import REGION_CODES
from treft.core.patching import prefix_cache
from treft.core.recording import ReferenceRequest
from treft.core.reference import ReferenceBank
from treft.core.states import in_backward, pretrained_model
from treft.errors import ConfigError
from treft.models.adapters import adapter_off, is_peft, trained_adapter
from treft.training import checks
from treft.training.forward import behind, num_shared, why_whole
from treft.training.reference_source import choose_kind
from treft.training.terms import LossBatch, Mitigation

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(eq=False)
class FrozenPrefix(Mitigation):
    """The adapter is off at prefix tokens, so that their keys and values are the base's, exactly.

    Source: eq. (3) for λ → ∞; activated LoRA (arXiv 2504.12397) likewise leaves the tokens before
    an invocation to the base. Formula: y_t = W x_t + 1[t not in prefix] s B A x_t in every adapted
    layer. By causality a prefix token depends on prefix tokens only, so all its states are the
    base's, and what trains is what `patch=prefix` serves: the base's prefix cache, and the adapter
    on the rest. Nothing is added to the loss. Cost: less than none. The prefix that the rows of a
    batch share is run once for the whole training, and each row begins from its keys and values,
    unless rows must be run whole (`why_whole`: sliding windows, gradient checkpointing, packed
    rows, ...); no extra data. Rows may have different prefixes, be padded, packed or checkpointed.

    **The adapter must be served the same way**: `treft generate --patch prefix`, or the base's
    prefix cache. Without, its prefix was never trained.

    Raises:
        ConfigError: something else than a fresh LoRA of linear layers trains, or the model does not
            keep the conversations of a flattened row apart.
    """

    name: ClassVar[str] = "frozen_prefix"
    regions = ("prefix",)
    changes_forward: ClassVar[bool] = True
    whole_rows: ClassVar[bool] = True

    def prepare(self, trainer: SFTTrainer) -> None:
        """Hook the factor B of every adapted layer."""
        checks.isolation(trainer)
        for factor in _second_factors(trainer.model):
            factor.register_forward_hook(self._switch_off)
        self._active: Tensor | None = None
        self._is_open = False
        self._config = pretrained_model(trainer.model).config.get_text_config(decoder=True)
        self._can_start = why_whole(trainer) is None
        self._bank = ReferenceBank(adapter_off(trainer.model))

    def _start_behind(self, batch: LossBatch, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch from the end of the prefix that its rows share, with that prefix's cache."""
        num = num_shared(inputs, batch.regions["region_codes"]) if self._can_start else 0
        if num < 1:
            return inputs
        assert self._active is not None
        self._active = self._active[:, num:]
        input_ids = inputs["input_ids"]
        tokens = tuple(input_ids[0, :num].tolist())
        request = ReferenceRequest(tokens, tuple(range(num)), tuple(range(num)))
        [states] = self._bank.get([request])
        return behind(num, inputs, prefix_cache(states, self._config, len(input_ids)))

    @contextmanager
    def around_forward(self, batch: LossBatch, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The adapter is off at this batch's prefix tokens, also when a checkpoint replays it."""
        self._active = batch.regions["region_codes"] != REGION_CODES["prefix"]
        self._is_open = True
        try:
            yield self._start_behind(batch, inputs)
        finally:
            self._is_open = False

    def _switch_off(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if self._active is None or not (self._is_open or in_backward()):
            return output
        if output.shape[:-1] != self._active.shape:
            raise ConfigError(
                f"an adapted layer gets tokens as {tuple(output.shape[:-1])}, not as the batch's "
                f"{tuple(self._active.shape)} (experts, for one): leave it out of target_modules."
            )
        return output * self._active.to(output)[..., None]


def _second_factors(model: nn.Module) -> list[nn.Module]:
    """Returns the modules B of the LoRA that trains."""
    if not is_peft(model) or choose_kind(model, ("prefix",), None) != "adapter_off":
        raise ConfigError(
            "frozen_prefix switches a fresh adapter off at the prefix: train a new LoRA (use_peft) "
            "and merge an adapter that had learnt into its base first."
        )
    adapter = trained_adapter(cast("PeftModel", model))
    layers = [m for m in model.modules() if isinstance(m, LoraLayer) and adapter in m.lora_B]
    known = {id(p) for layer in layers for p in _factors(layer, adapter)}
    other = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in known]
    variants = [layer for layer in layers if adapter in layer.lora_variant]
    if other or variants:
        found = other[0] if other else type(variants[0].lora_variant[adapter]).__name__
        raise ConfigError(
            f"frozen_prefix needs a plain LoRA of linear layers and nothing else that trains, but "
            f"{found} does: drop modules_to_save, target_parameters, bias and variants (DoRA)."
        )
    return [layer.lora_B[adapter] for layer in layers]


def _factors(layer: LoraLayer, adapter: str) -> list[nn.Parameter]:
    factors = (layer.lora_A[adapter], layer.lora_B[adapter])
    if not all(isinstance(factor, nn.Linear) for factor in factors):
        return []
    return [parameter for factor in factors for parameter in factor.parameters()]
