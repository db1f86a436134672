"""Eq. (1) without treft: run by run of tokens, into a plain cache that is overwritten by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

States = dict[int, tuple[Tensor, Tensor]]
"""Position -> keys and values of every layer, (layers, H, D) each."""


def states_by_position(
    model: Any, token_ids: Sequence[int], position_ids: Sequence[int] | None = None
) -> States:
    """Run a model on tokens, at any rotary positions; a new forward where positions jump."""
    positions = list(range(len(token_ids))) if position_ids is None else list(position_ids)
    cache = DynamicCache()
    for run in _runs(len(positions), lambda at: positions[at] != positions[at - 1] + 1):
        _forward(model, cache, [token_ids[at] for at in run], [positions[at] for at in run])
    return {
        position: (
            torch.stack([layer.keys[0, :, index] for layer in cache.layers]),
            torch.stack([layer.values[0, :, index] for layer in cache.layers]),
        )
        for index, position in enumerate(positions)
    }


def patched_logits(model: Any, token_ids: Sequence[int], patch: Mapping[int, Any]) -> Tensor:
    """Logits (V,) after the last token; states at the positions in `patch` are replaced.

    What a patched token sees is lost with its states, so those of one stretch run together. The
    last token must not be patched.
    """
    assert len(token_ids) - 1 not in patch
    cache = DynamicCache()
    logits = torch.empty(0)
    for run in _runs(len(token_ids), lambda at: (at in patch) != (at - 1 in patch)):
        logits = _forward(model, cache, [token_ids[at] for at in run], run)
        for position in run if run[0] in patch else ():
            keys, values = patch[position]
            for layer, key, value in zip(cache.layers, keys, values, strict=True):
                layer.keys[0, :, position] = key
                layer.values[0, :, position] = value
    return logits


def _runs(length: int, is_first: Callable[[int], bool]) -> list[list[int]]:
    """The indices below `length`, cut where a run begins."""
    starts = [at for at in range(length) if at == 0 or is_first(at)]
    return [list(range(*ends)) for ends in pairwise([*starts, length])]


@torch.no_grad()
def _forward(
    model: Any, cache: DynamicCache, tokens: Sequence[int], positions: Sequence[int]
) -> Tensor:
    output = model(
        input_ids=torch.tensor([tokens]),
        position_ids=torch.tensor([positions]),
        past_key_values=cache,
        use_cache=True,
    )
    logits: Tensor = output.logits[0, -1]
    return logits
