"""Eq. (1): put the unfinetuned model's keys and values into the cache of the finetuned one.

Shapes: B batch rows, H key/value heads, T tokens, D head dimension, N patched tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from treft.errors import ConfigError, ReferenceMismatchError
from treft.recording import RecordedStates
from treft.states import KeyValue

__all__ = ["PatchedCache", "RowPatch", "draw_tokens", "has_sliding_window", "prefix_cache"]


@dataclass(frozen=True)
class RowPatch:
    """What to replace in one row.

    Attributes:
        columns: ascending columns of the padded prompt.
        states: reference keys and values of those tokens, (H, N, D) a layer.
    """

    columns: tuple[int, ...]
    states: RecordedStates

    def __len__(self) -> int:
        return len(self.columns)

    def only(self, tokens: Sequence[int]) -> RowPatch:
        """The same patch at the given ones of its tokens, counted from 0."""
        states = {
            layer: KeyValue(*(tensor[:, list(tokens)] for tensor in pair))
            for layer, pair in self.states.items()
        }
        return RowPatch(tuple(self.columns[token] for token in tokens), states)

    def moved(self, num_columns: int) -> RowPatch:
        """The same patch with `num_columns` of padding before it."""
        return RowPatch(tuple(column + num_columns for column in self.columns), self.states)


def draw_tokens(rng: random.Random, patches: Sequence[RowPatch], num: int) -> list[RowPatch]:
    """Keep `num` of a region's patched tokens, or all when there are fewer."""
    tokens = [(part, token) for part, found in enumerate(patches) for token in range(len(found))]
    kept = sorted(rng.sample(tokens, min(num, len(tokens))))
    return [
        found.only([token for of_part, token in kept if of_part == part])
        for part, found in enumerate(patches)
    ]


class _Patch(NamedTuple):
    """All patched tokens of one layer: rows (N,), columns (N,), keys and values (N, H, D)."""

    rows: Tensor
    columns: Tensor
    states: KeyValue

    def within(self, start: int, end: int) -> _Patch:
        """The tokens in columns [start, end), which are then counted from `start`."""
        inside = (self.columns >= start) & (self.columns < end)
        states = KeyValue(*(tensor[inside] for tensor in self.states))
        return _Patch(self.rows[inside], self.columns[inside] - start, states)


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
        ConfigError: some layer keeps other states than keys and values.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        patches: Sequence[Sequence[RowPatch]],
        num_columns: int,
    ) -> None:
        super().__init__(config=config)
        _refuse_other_states(self)
        self._rows = patches
        self._num_columns = num_columns
        self._written: dict[int, int] = {}
        self._patches: dict[int, _Patch] = {}

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
        if start < self._num_columns:
            if start == 0:
                self._patches[layer_idx] = self._gather(layer_idx, key_states)
            patch = self._patches[layer_idx]
            if end - start < self._num_columns:
                patch = patch.within(start, end)
            key_states = _replace(key_states, patch, patch.states.key)
            value_states = _replace(value_states, patch, patch.states.value)
            if end == self._num_columns:
                del self._patches[layer_idx]
        stored: tuple[Tensor, Tensor] = super().update(
            key_states, value_states, layer_idx, *args, **kwargs
        )
        return stored

    def _refuse_another_prompt(self, start: int, end: int) -> None:
        """After the planned columns come single tokens; more at once are not of this prompt."""
        is_prompt = end <= self._num_columns
        is_step = start >= self._num_columns and end - start == 1
        if not (is_prompt or is_step):
            raise ConfigError(
                f"this cache was planned for a prompt of {self._num_columns} columns and would get "
                f"columns {start} to {end - 1} at once: make a new PatchedCache for each prompt, "
                "and generate one token at a time (no assisted decoding)."
            )

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
                    if layer not in patch.states:
                        raise _other_shape(f"{len(patch.states)} layers", f"layer {layer}")
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
        if key.shape[1:] != (like.shape[1], like.shape[3]):
            raise _other_shape(
                f"heads of shape {tuple(key.shape[1:])}", f"{(like.shape[1], like.shape[3])}"
            )
        where = [torch.tensor(part, device=like.device) for part in (rows, columns)]
        return _Patch(where[0], where[1], KeyValue(key, value))


def _replace(new: Tensor, patch: _Patch, states: Tensor) -> Tensor:
    """The new tokens, patched; those given are left as they are."""
    patched = new.clone()
    patched[patch.rows, :, patch.columns] = states
    return patched


def _other_shape(reference: str, model: str) -> ReferenceMismatchError:
    return ReferenceMismatchError(
        f"the reference is of another model: it has {reference} where this model has {model}; "
        "record it from the model that this one was finetuned from."
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
    """Whether some layer of the text decoder sees a window of tokens only."""
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
