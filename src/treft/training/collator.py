"""Carry each token's region code and turn from the dataset's rows into the batch.

Shapes: B batch rows, T tokens of the padded (or flattened) batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from treft.errors import ConfigError

REGION_COLUMNS = ("region_codes", "turns")
"""Dataset columns beside `input_ids`; the trainer takes them out before the model is called."""

Examples = Sequence[Mapping[str, Any]]


class RegionCollator(DataCollatorForLanguageModeling):
    """TRL's collator for language modelling; its batch also has the region columns, (B, T)."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Batch `examples`; padding has code 0 (no region) and turn 0."""
        return attach_regions(super().torch_call(examples), examples)


class WrappedCollator:
    """A user's own collator that never sees the region columns, which are added to its batch."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Batch `examples` with the user's collator and add the region columns."""
        bare = [
            {name: value for name, value in example.items() if name not in REGION_COLUMNS}
            for example in examples
        ]
        return attach_regions(self.collate(bare), examples)


def carry_regions(collator: Any) -> RegionCollator | WrappedCollator:
    """`collator` with the region columns in its batches: TRL's own, or a user's wrapped."""
    if type(collator) is DataCollatorForLanguageModeling:
        return RegionCollator(**vars(collator))
    return WrappedCollator(collator)


def attach_regions(batch: dict[str, Any], examples: Examples) -> dict[str, Any]:
    """Add `region_codes` and `turns`, (B, T), to a collated batch, whichever side it is padded.

    Args:
        batch: `input_ids` (B, T), with `attention_mask` (B, T) or flattened to one row without it.
        examples: the rows it was made of, in order; left alone when they carry no regions.

    Raises:
        ConfigError: the batch does not hold the rows' tokens one to one.
    """
    if not all(name in example for example in examples for name in REGION_COLUMNS):
        return batch
    places = _places(batch, examples)
    for name in REGION_COLUMNS:
        column = torch.zeros_like(batch["input_ids"])
        column[places] = torch.cat([torch.as_tensor(example[name]) for example in examples])
        batch[name] = column
    return batch


def _places(batch: dict[str, Any], examples: Examples) -> Tensor:
    """Mask (B, T) of the tokens that came from `examples`, in their order when read row by row."""
    lengths = torch.tensor([len(example["region_codes"]) for example in examples])
    mask: Tensor | None = batch.get("attention_mask")
    if mask is None:
        places = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        places.view(-1)[: int(lengths.sum())] = True
        matches = places.shape[0] == 1 and int(places.sum()) == int(lengths.sum())
    else:
        places = mask.bool()
        matches = len(lengths) == len(places) and bool((places.sum(dim=1) == lengths).all())
    if not matches:
        raise ConfigError(
            "the data collator changes the number of tokens of a row, so the regions to hold can "
            "no longer be placed: use a collator that only pads, or the trainer's own."
        )
    return places
