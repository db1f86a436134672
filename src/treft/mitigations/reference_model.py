"""The model before this finetune, run without gradient beside the one that trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from accelerate.utils import AutocastKwargs
from torch import nn
from trl import SFTTrainer

from treft.core.recording import plain_forward
from treft.errors import ConfigError
from treft.models.adapters import KEPT_ADAPTER, keep_adapter, only_adapter, without_adapter
from treft.training.reference_source import choose_kind, frozen_copy

if TYPE_CHECKING:
    from peft import PeftModel


class ReferenceModel:
    """The unfinetuned model of a run, as `training.reference_source` finds it.

    A fresh adapter: the same model with the adapter off. An adapter that had learnt: a frozen copy
    of it, switched to. All weights: a frozen copy of the model (its size more).

    Args:
        trainer: of the run, before its first step.

    Raises:
        ConfigError: weights are sharded over processes, so they cannot be run outside a step.
    """

    def __init__(self, trainer: SFTTrainer) -> None:
        plugin = trainer.args.deepspeed_plugin
        if trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3):
            raise ConfigError(
                "this mitigation runs the unfinetuned model in each step, which sharded weights "
                "(FSDP, ZeRO-3) do not allow: use data parallelism."
            )
        self._trainer = trainer
        self.kind = choose_kind(trainer.model, ("response",), None)
        self.model: nn.Module = trainer.model
        if self.kind == "kept_adapter":
            keep_adapter(cast("PeftModel", trainer.model))
        elif self.kind == "kept_model":
            self.model = frozen_copy(trainer.model)

    @contextmanager
    def running(self) -> Iterator[Any]:
        """Yields the model to call: no gradient, no dropout, the precision of training."""
        autocast = self._trainer.accelerator.autocast(AutocastKwargs(cache_enabled=False))
        with autocast, plain_forward(self.model):
            if self.kind == "adapter_off":
                with without_adapter(self.model):
                    yield self.model
            elif self.kind == "kept_adapter":
                with only_adapter(self.model, KEPT_ADAPTER):
                    yield self.model
            else:
                yield self.model
