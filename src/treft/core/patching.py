"""Eq. (1): put the unfinetuned model's keys and values into the cache of the finetuned one.

Shapes: B batch rows, H key/value heads, T tokens, D head dimension, N patched tokens.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from treft.core.recording import RecordedStates
from treft.core.states import KeyValue
from treft.errors import ConfigError, ReferenceMismatchError

StateKind = Literal["key", "value"]
KINDS: tuple[StateKind, ...] = ("key", "value")
"""What a token has in each layer, named as in `KeyValue`."""


@dataclass(frozen=True)
class RowPatch:
    """What to replace in one row.

    Attributes:
        columns: ascending columns of the padded prompt.
        states: reference keys and values of those tokens, (H, N, D) a layer.
        kinds: keys, values or both.
        layers: in which layers; None means all.
    """

    columns: tuple[int, ...]
    states: RecordedStates
    kinds: tuple[StateKind, ...] = KINDS
    layers: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.columns)

    def only(self, tokens: Sequence[int]) -> RowPatch:
        """Returns the same patch at the given ones of its tokens, counted from 0."""
        states = {
            layer: KeyValue(*(tensor[:, list(tokens)] for tensor in pair))
            for layer, pair in self.states.items()
        }
        columns = tuple(self.columns[token] for token in tokens)
        return dataclasses.replace(self, columns=columns, states=states)

    def moved(self, num_columns: int) -> RowPatch:
        """Returns the same patch with `num_columns` of padding before it."""
        columns = tuple(column + num_columns for column in self.columns)
        return dataclasses.replace(self, columns=columns)

    def replaces(self, layer: int, kind: StateKind) -> bool:
        """Returns whether this kind of state changes in this layer."""
        return kind in self.kinds and (self.layers is None or layer in self.layers)


def draw_tokens(rng: random.Random, patches: Sequence[RowPatch], num: int) -> list[RowPatch]:
    """Keep `num` of a region's patched tokens, or all when there are fewer."""
    tokens = [(part, token) for part, found in enumerate(patches) for token in range(len(found))]
    kept = sorted(rng.sample(tokens, min(num, len(tokens))))
    return [
        found.only([token for of_part, token in kept if of_part == part])
        for part, found in enumerate(patches)
    ]


class _Where(NamedTuple):
    """Rows and columns of N patched tokens, (N,) each; rows are counted before any is repeated."""

    rows: Tensor
    columns: Tensor


class _Patches:
    """The patches of all rows, taken together layer by layer.

    Patches of the same tokens share their index tensors, which are thus made once and not for each
    layer and kind.

    Args:
        rows: for each row of the prompt, the replacements to make.
        num_columns: columns of the padded prompt.
    """

    def __init__(self, rows: Sequence[Sequence[RowPatch]], num_columns: int) -> None:
        self._num_rows = len(rows)
        self._num_columns = num_columns
        self._rows = [row for row, patches in enumerate(rows) for _ in patches]
        self._patches = [patch for patches in rows for patch in patches]
        self._where: dict[tuple[torch.device, tuple[int, ...]], _Where] = {}

    def write(self, stored: Tensor, layer: int, kind: StateKind, start: int, end: int) -> None:
        """Replace, in place, what a layer holds at the patched ones of the columns [start, end).

        Args:
            stored: keys or values (B, H, T, D), whose last ones are those columns.
            layer: its index.
            kind: which of the two these are.
            start: the first column that was written just now.
            end: the column after the last.
        """
        taken = tuple(
            number for number, patch in enumerate(self._patches) if patch.replaces(layer, kind)
        )
        if not taken:
            return
        rows, columns = self._places(taken, stored.device)
        states = self._states(taken, layer, kind, stored)
        if end - start < self._num_columns:
            inside = (columns >= start) & (columns < end)
            rows, states = rows[inside], states[inside]
            columns = columns[inside] + stored.shape[2] - end
        by_prompt = stored.view(self._num_rows, -1, *stored.shape[1:])
        by_prompt[rows, :, :, columns] = states[:, None]  # each repeat of a row alike

    def check(self, num_rows: int) -> None:
        """Refuse a batch that does not have each planned row equally often."""
        if not self._num_rows or num_rows % self._num_rows or not num_rows:
            raise ConfigError(
                f"the cache was planned for {self._num_rows} prompts but the batch has "
                f"{num_rows} rows: make a new PatchedCache for each call of generate."
            )

    def _places(self, taken: tuple[int, ...], device: torch.device) -> _Where:
        if (device, taken) not in self._where:
            patches = [(self._rows[number], self._patches[number].columns) for number in taken]
            rows = [row for row, columns in patches for _ in columns]
            both = [rows, [column for _, columns in patches for column in columns]]
            self._where[device, taken] = _Where(
                *torch.tensor(both, dtype=torch.long, device=device)
            )
        return self._where[device, taken]

    def _states(self, taken: Sequence[int], layer: int, kind: StateKind, like: Tensor) -> Tensor:
        """Returns the reference's, (N, H, D)."""
        parts = []
        for number in taken:
            states = self._patches[number].states
            if layer not in states:
                raise _other_shape(f"{len(states)} layers", f"layer {layer}")
            parts.append(states[layer][KINDS.index(kind)])
        found = torch.cat(parts, dim=1).transpose(0, 1)
        if found.shape[1:] != (like.shape[1], like.shape[3]):
            raise _other_shape(
                f"heads of shape {tuple(found.shape[1:])}", f"{(like.shape[1], like.shape[3])}"
            )
        return found.to(like)


class PatchedCache(DynamicCache):
    """A cache that replaces keys and values as each layer writes its prompt into it.

    Attention in prefill sees the replaced states, and so does every later step, with sliding
    windows too: a window drops tokens only after they were written. A prompt written in chunks is
    followed chunk by chunk. `generate` may repeat rows (beams, `num_return_sequences`). A cache
    serves one prompt; a second one is refused, since its tokens would go unpatched.

    Args:
        config: of the text decoder that will write (`model.config.get_text_config(decoder=True)`).
        patches: for each row of the prompt, the replacements to make; empty for a row as it is.
        num_columns: columns T of the padded prompt.

    Raises:
        ConfigError: some layer keeps other states than keys and values, or there is no layer that
            a patch names.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        patches: Sequence[Sequence[RowPatch]],
        num_columns: int,
    ) -> None:
        super().__init__(config=config)
        _refuse_other_states(self)
        _refuse_absent_layers(patches, len(self.layers))
        self._num_columns = num_columns
        self._written: dict[int, int] = {}
        self._patches = _Patches(patches, num_columns)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the new tokens of a layer, (B, H, T, D) each, patched where they are the prompt's.

        Returns:
            What attention is to see: keys and values of this layer, earlier tokens included.

        Raises:
            ConfigError: these are not the planned rows and columns, or a second prompt.
            ReferenceMismatchError: the reference has other layers or heads than the model.
        """
        start = self._written.get(layer_idx, 0)
        end = start + key_states.shape[-2]
        self._refuse_another_prompt(start, end)
        self._written[layer_idx] = end
        new = (key_states, value_states)
        stored: tuple[Tensor, Tensor] = super().update(*new, layer_idx, *args, **kwargs)
        if start < self._num_columns:
            self._patches.check(len(key_states))
            for kind, given, held in zip(KINDS, new, stored, strict=True):
                # Layers store a copy, so the tensors of the caller stay as they are.
                assert held.untyped_storage().data_ptr() != given.untyped_storage().data_ptr()
                self._patches.write(held, layer_idx, kind, start, end)
        return stored

    def _refuse_another_prompt(self, start: int, end: int) -> None:
        """Refuse several tokens at once after the planned columns: they are not of this prompt."""
        is_prompt = end <= self._num_columns
        is_step = start >= self._num_columns and end - start == 1
        if not (is_prompt or is_step):
            raise ConfigError(
                f"this cache was planned for a prompt of {self._num_columns} columns and would get "
                f"columns {start} to {end - 1} at once: make a new PatchedCache for each prompt, "
                "and generate one token at a time (no assisted decoding)."
            )


def _other_shape(reference: str, model: str) -> ReferenceMismatchError:
    return ReferenceMismatchError(
        f"the reference is of another model: it has {reference} where this model has {model}; "
        "record it from the model that this one was finetuned from."
    )


def _refuse_absent_layers(rows: Sequence[Sequence[RowPatch]], num_layers: int) -> None:
    named = {layer for row in rows for patch in row for layer in patch.layers or ()}
    if absent := sorted(named - set(range(num_layers))):
        raise ConfigError(
            f"layers {absent} are to be patched, but the layers of this model that keep keys and "
            f"values are 0 to {num_layers - 1}."
        )


def _refuse_other_states(cache: DynamicCache) -> None:
    """Linear attention carries a prefix in a state that no replaced keys and values would reach."""
    others = [
        layer
        for layer, kept in enumerate(cache.layers)
        if isinstance(kept, LinearAttentionCacheLayerMixin)
    ]
    if others:
        raise ConfigError(
            f"layers {others} of this model have linear attention, whose state is no keys and "
            "values: patching would leave the finetuned model's prefix in it. Such models cannot "
            "be repaired this way."
        )


def has_sliding_window(config: PretrainedConfig) -> bool:
    """Returns whether some layer of the text decoder sees a window of tokens only."""
    return any(getattr(layer, "is_sliding", False) for layer in DynamicCache(config=config).layers)


def prefix_cache(
    reference: RecordedStates, config: PretrainedConfig, batch_size: int
) -> DynamicCache:
    """A cache that starts with the reference's prefix, whose prefill is thereby saved.

    Prompts are given whole, as [prefix | padding | rest] with an attention mask 1...1 0...0 1...1.
    `generate` lets the cache grow: make a new one for each call.

    Args:
        reference: states of the whole prefix, (H, T, D) a layer.
        config: of the text decoder that will use it.
        batch_size: rows B that the model will run, repeats for beams included.

    Raises:
        ReferenceMismatchError: the reference has other layers than the model.
        ConfigError: some layer has a sliding window; there the pads of shorter prompts would push
            the prefix out of it. Use `PatchedCache`.
    """
    if has_sliding_window(config):
        raise ConfigError(
            "this model has sliding-window layers, for which a ready-made prefix cache is wrong at "
            "unequal lengths: use PatchedCache."
        )
    cache = DynamicCache(config=config)
    _refuse_other_states(cache)
    if list(reference) != list(range(len(cache.layers))):
        raise _other_shape(f"{len(reference)} layers", f"{len(cache.layers)} layers")
    for layer, states in reference.items():
        key, value = (tensor.expand(batch_size, *tensor.shape) for tensor in states)
        cache.update(key, value, layer)
    return cache
