"""Replace tokens by neighbours in the input embedding (section 4.1 of the paper).

Shapes: V rows of the embedding, D its size, N tokens, K neighbours.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_SIZE = 16_384
"""Rows of the embedding that are compared at a time."""


@dataclass(frozen=True)
class Replacement:
    """One token that gave way to another.

    Attributes:
        position: of the token.
        old: its id.
        new: the id in its place.
    """

    position: int
    old: int
    new: int


def nearest_tokens(
    embedding: Tensor,
    token_ids: Sequence[int],
    num: int,
    *,
    excluded: Collection[int] = (),
    chunk_size: int = CHUNK_SIZE,
) -> Tensor:
    """The tokens whose input embeddings have the largest dot product with those of given tokens.

    The matrix of all products is never held: rows of the embedding are taken chunk by chunk.

    Args:
        embedding: (V, D) input embedding matrix.
        token_ids: N tokens.
        num: K, how many neighbours of each; at most V less the tokens left out.
        excluded: tokens that are nobody's neighbour (special tokens, rows without a token).
        chunk_size: rows compared at a time.

    Returns:
        (N, K) ids, nearest first; no token is its own neighbour.
    """
    num_rows = len(embedding)
    assert 0 < num <= num_rows - len(set(excluded)) - 1, "there are as many other tokens"
    ids = torch.tensor(token_ids, dtype=torch.long)
    wanted = embedding.detach()[ids.to(embedding.device)].float()  # (N, D)
    barred = torch.zeros(num_rows, dtype=torch.bool)
    barred[torch.tensor(sorted(set(excluded)), dtype=torch.long)] = True
    scores = torch.empty(len(ids), 0)
    found = torch.empty(len(ids), 0, dtype=torch.long)
    for start in range(0, num_rows, chunk_size):
        rows = torch.arange(start, min(start + chunk_size, num_rows))
        chunk = (wanted @ embedding.detach()[start : start + chunk_size].float().T).cpu()
        chunk[barred[rows].expand_as(chunk) | (rows == ids[:, None])] = -torch.inf
        scores = torch.cat((scores, chunk), dim=1)
        found = torch.cat((found, rows.expand(len(ids), -1)), dim=1)
        scores, best = scores.topk(min(num, scores.shape[1]), dim=1)
        found = found.gather(1, best)
    return found


def replace_tokens(
    token_ids: Sequence[int],
    neighbours: Mapping[int, Sequence[int]],
    num: int,
    rng: random.Random,
    is_valid: Callable[[Sequence[int]], bool] = lambda _: True,
) -> tuple[list[int], tuple[Replacement, ...]]:
    """Replace tokens at random positions by a random neighbour each.

    Args:
        token_ids: (T,) a prompt.
        neighbours: what may come at each position that may change.
        num: positions to change; fewer change where `is_valid` refuses all neighbours.
        rng: draws positions and neighbours.
        is_valid: whether a prompt may be, such as whether its text has these very tokens again.

    Returns:
        The prompt and what changed in it, in the order of positions.
    """
    ids = list(token_ids)
    replaced: list[Replacement] = []
    for position in rng.sample(sorted(neighbours), len(neighbours)):
        if len(replaced) == num:
            break
        candidates = neighbours[position]
        for new in rng.sample(list(candidates), len(candidates)):
            changed = [*ids[:position], new, *ids[position + 1 :]]
            if is_valid(changed):
                replaced.append(Replacement(position, ids[position], new))
                ids = changed
                break
    return ids, tuple(sorted(replaced, key=lambda change: change.position))
