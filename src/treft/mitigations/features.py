"""LDIFS: hold hidden states of the training rows to the unfinetuned model's.

Shapes: B rows, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from trl import SFTTrainer

from treft.chat.regions import REGION_CODES, RegionName
from treft.core.states import resolve_layers
from treft.errors import ConfigError
from treft.models.residual import residual_stream
from treft.training.forward import run_batch
from treft.training.reference_source import unfinetuned
from treft.training.terms import LossBatch, Mitigation, flag


@dataclass(eq=False)
class FeatureDistance(Mitigation):
    """λ times the squared distance of hidden states from the unfinetuned model's.

    Source: LDIFS, Mukhoti et al., arXiv 2308.13320 (there of image encoders); for language models
    Kaczér et al., arXiv 2508.06249. Formula: L_SFT + λ / (L T) Σ_l Σ_t ‖h_lt − h⁰_lt‖², h_lt the
    residual stream after layer l at token t, all T tokens of the micro-batch that are no padding,
    or those of some regions alone (ours: to see which tokens it works at). It is not relative, so
    λ depends on the model's scale: sweep from 1e-4 up. Cost: one forward of the unfinetuned model
    a step and both models' hidden states in memory; no data.

    Attributes:
        weight: λ of the squared distance of hidden states; 0 is off.
        layers: Layers that are held, negative from the last; default all.
        regions: Whose tokens are held: prefix, query, postfix, response; default all tokens. Every
            row must have each of them.

    Raises:
        ConfigError: an argument is out of range.
    """

    name: ClassVar[str] = "ldifs"
    has_term: ClassVar[bool] = True
    whole_rows: ClassVar[bool] = True

    weight: float = field(metadata=flag("ldifs_weight", float, off=0.0, needs="strength"))
    layers: Sequence[int] | None = field(default=None, metadata=flag("ldifs_layers", list[int]))
    regions: Sequence[RegionName] = field(default=(), metadata=flag("ldifs_regions", list[str]))

    def __post_init__(self) -> None:
        """Validate."""
        if not 0 < self.weight < float("inf"):
            raise ConfigError(f"ldifs_weight must be a positive number, not {self.weight}.")
        self.regions = tuple(dict.fromkeys(self.regions))
        if unknown := [name for name in self.regions if name not in REGION_CODES]:
            raise ConfigError(
                f"ldifs_regions are some of {', '.join(REGION_CODES)}, not {unknown[0]!r}."
            )

    def prepare(self, trainer: SFTTrainer) -> None:
        """Find the unfinetuned model."""
        kwargs = trainer.args.gradient_checkpointing_kwargs or {}
        if trainer.args.gradient_checkpointing and kwargs.get("use_reentrant"):
            raise ConfigError(
                "reentrant gradient checkpointing gives hidden states no gradient, so ldifs would "
                "do nothing: set gradient_checkpointing_kwargs={'use_reentrant': False}."
            )
        if self.layers is not None:
            self.layers = resolve_layers(trainer.model, self.layers)
        self.reference = unfinetuned(trainer)

    @contextmanager
    def around_forward(self, batch: LossBatch, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Keep the hidden states of the SFT loss's own forward."""
        with residual_stream(batch.trainer.model) as found:
            yield inputs
        batch.kept.setdefault(self.name, dict(found))

    def term(self, batch: LossBatch) -> Tensor:
        """λ times the micro-batch's mean squared distance."""
        found = batch.kept.pop(self.name)
        with self.reference.running() as reference, residual_stream(reference) as before:
            run_batch(reference, batch.inputs)
        layers = list(found) if self.layers is None else self.layers
        distances = [(found[n].float() - before[n].float()).square().sum(-1) for n in layers]
        distance = torch.stack([d.to(distances[0].device) for d in distances]).mean(0)  # (B, T)
        held = self._held(batch)
        kept = distance if held is None else distance[held.to(distance.device)]
        return self.weight * kept.mean() * batch.per_batch

    def _held(self, batch: LossBatch) -> Tensor | None:
        """(B, T) which tokens count; None for all. Padding is in no region."""
        if self.regions:
            codes = batch.regions["region_codes"]
            return torch.isin(codes, codes.new_tensor([REGION_CODES[r] for r in self.regions]))
        mask: Tensor | None = batch.inputs.get("attention_mask")
        return None if mask is None else mask.bool()
