"""Eq. (1) without treft: token by token, into a plain cache that is overwritten by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

States = dict[int, tuple[Tensor, Tensor]]
"""Position -> keys and values of every layer, (layers, H, D) each."""


def states_by_position(
    model: Any, token_ids: Sequence[int], position_ids: Sequence[int] | None = None
) -> States:
    """Run a model on tokens, at any rotary positions, one after the other."""
    positions = list(range(len(token_ids))) if position_ids is None else list(position_ids)
    cache = DynamicCache()
    for token, position in zip(token_ids, positions, strict=True):
        _step(model, cache, token, position)
    return {
        position: (
            torch.stack([layer.keys[0, :, index] for layer in cache.layers]),
            torch.stack([layer.values[0, :, index] for layer in cache.layers]),
        )
        for index, position in enumerate(positions)
    }


def patched_logits(model: Any, token_ids: Sequence[int], patch: Mapping[int, Any]) -> Tensor:
    """Logits (V,) after the last token; states at the positions in `patch` are replaced.

    A token sees its own states before they are replaced, so the last one must not be patched.
    """
    assert len(token_ids) - 1 not in patch
    cache = DynamicCache()
    logits = torch.empty(0)
    for position, token in enumerate(token_ids):
        logits = _step(model, cache, token, position)
        if position in patch:
            keys, values = patch[position]
            for layer, key, value in zip(cache.layers, keys, values, strict=True):
                layer.keys[0, :, position] = key
                layer.values[0, :, position] = value
    return logits


@torch.no_grad()
def _step(model: Any, cache: DynamicCache, token: int, position: int) -> Tensor:
    output = model(
        input_ids=torch.tensor([[token]]),
        position_ids=torch.tensor([[position]]),
        past_key_values=cache,
        use_cache=True,
    )
    logits: Tensor = output.logits[0, -1]
    return logits
