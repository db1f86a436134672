"""Eq. (1): put the unfinetuned model's keys and values into the cache of the finetuned one.

Shapes: B batch rows, H key/value heads, T tokens, D head dimension, N patched tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig

from treft.errors import ConfigError
from treft.recording import RecordedStates
from treft.states import KeyValue

__all__ = ["PatchedCache", "RowPatch", "has_sliding_window", "prefix_cache"]


@dataclass(frozen=True)
class RowPatch:
    """What to replace in one row.

    Attributes:
        columns: ascending columns of the padded prompt.
        states: reference keys and values of those tokens, (H, N, D) a layer.
    """

    columns: tuple[int, ...]
    states: RecordedStates

    def moved(self, num_columns: int) -> RowPatch:
        """The same patch with `num_columns` of padding before it."""
        return RowPatch(tuple(column + num_columns for column in self.columns), self.states)


class _Patch(NamedTuple):
    """All patched tokens of one layer: rows (N,), columns (N,), keys and values (N, H, D)."""

    rows: Tensor
    columns: Tensor
    states: KeyValue


class PatchedCache(DynamicCache):
    """A cache that replaces keys and values as each layer writes its prompt into it.

    Attention in prefill sees the replaced states, and so does every later step, with sliding
    windows too: a window drops tokens only after they were written. A prompt written in chunks is
    followed chunk by chunk. `generate` may repeat rows (beams, `num_return_sequences`).

    Args:
        config: of the model that will write.
        patches: for each row of the prompt, the replacements to make.
        num_columns: columns T of the padded prompt.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        patches: Sequence[Sequence[RowPatch]],
        num_columns: int,
    ) -> None:
        super().__init__(config=config)
        self._rows = patches
        self._num_columns = num_columns
        self._written: dict[int, int] = {}
        self._patches: dict[int, _Patch] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the new tokens of a layer, (B, H, T, D) each, patched where they are the prompt's.

        Raises:
            ConfigError: the rows are no multiple of the planned ones.
        """
        start = self._written.get(layer_idx, 0)
        end = start + key_states.shape[-2]
        self._written[layer_idx] = end
        if start < self._num_columns:
            if start == 0:
                self._patches[layer_idx] = self._gather(layer_idx, key_states)
            patch = self._patches[layer_idx]
            key_states = _replace(key_states, patch, patch.states.key, start, end)
            value_states = _replace(value_states, patch, patch.states.value, start, end)
            if end >= self._num_columns:
                del self._patches[layer_idx]
        stored: tuple[Tensor, Tensor] = super().update(
            key_states, value_states, layer_idx, *args, **kwargs
        )
        return stored

    def _gather(self, layer: int, like: Tensor) -> _Patch:
        """The layer's patched tokens, rows repeated as the batch repeats them."""
        repeats, rest = divmod(like.shape[0], len(self._rows))
        if rest or not repeats:
            raise ConfigError(
                f"the cache was planned for {len(self._rows)} prompts but the batch has "
                f"{like.shape[0]} rows: make a new PatchedCache for each call of generate."
            )
        rows: list[int] = []
        columns: list[int] = []
        states: list[KeyValue] = []
        for row, patches in enumerate(self._rows):
            for repeat in range(repeats):
                for patch in patches:
                    rows += [row * repeats + repeat] * len(patch.columns)
                    columns += patch.columns
                    states.append(patch.states[layer])
        if not states:
            empty = like.new_zeros((0, like.shape[1], like.shape[3]))
            nothing = torch.zeros(0, dtype=torch.long, device=like.device)
            return _Patch(nothing, nothing, KeyValue(empty, empty))
        key, value = (
            torch.cat(parts, dim=1).transpose(0, 1).to(like) for parts in zip(*states, strict=True)
        )
        where = [torch.tensor(part, device=like.device) for part in (rows, columns)]
        return _Patch(where[0], where[1], KeyValue(key, value))


def _replace(new: Tensor, patch: _Patch, states: Tensor, start: int, end: int) -> Tensor:
    """Replace the patched tokens that fall into columns [start, end) of the prompt."""
    inside = (patch.columns >= start) & (patch.columns < end)
    patched = new.clone()
    patched[patch.rows[inside], :, patch.columns[inside] - start] = states[inside]
    return patched


def has_sliding_window(config: PretrainedConfig) -> bool:
    """Whether some layer of the text decoder sees a window of tokens only."""
    return any(getattr(layer, "is_sliding", False) for layer in DynamicCache(config=config).layers)


def prefix_cache(
    reference: RecordedStates, config: PretrainedConfig, batch_size: int
) -> DynamicCache:
    """A cache that starts with the reference's prefix, whose prefill is thereby saved.

    `generate` lets it grow: make a new one for each call.

    Args:
        reference: states of the whole prefix, (H, T, D) a layer.
        config: of the model that will use it.
        batch_size: rows B; beams and `num_return_sequences` are repeated by `generate` itself.

    Raises:
        ConfigError: some layer has a sliding window; there the pads of shorter prompts would push
            the prefix out of it. Use `PatchedCache`.
    """
    if has_sliding_window(config):
        raise ConfigError(
            "this model has sliding-window layers, for which a ready-made prefix cache is wrong at "
            "unequal lengths: use PatchedCache."
        )
    cache = DynamicCache(config=config)
    for layer, states in reference.items():
        key, value = (tensor.expand(batch_size, *tensor.shape) for tensor in states)
        cache.update(key, value, layer)
    return cache
