"""Replace tokens by neighbours in the input embedding (section 4.1 of the paper).

Shapes: V rows of the embedding, D its size, N tokens, K neighbours.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from treft.chat.regions import ChatRegions, RegionName
from treft.errors import ConfigError, TemplateError

SEARCH_BYTES = 2**28
"""Memory of the search for neighbours, beside the embedding and its result."""


class Replacement(NamedTuple):
    """One token that gave way to another.

    Attributes:
        position: of the token.
        old: its id.
        new: the id in its place.
    """

    position: int
    old: int
    new: int


def ordinary_tokens(tokenizer: PreTrainedTokenizerBase, num_rows: int) -> tuple[int, ...]:
    """Returns the ids that may come in place of others, ascending: neither special nor added.

    Args:
        tokenizer: whose vocabulary it is.
        num_rows: V, of the embedding, which may be padded beyond the tokens.
    """
    barred = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    known = set(tokenizer.get_vocab().values()) - barred
    return tuple(sorted(token for token in known if token < num_rows))


def replaceable(
    chat: ChatRegions,
    region: RegionName,
    ordinary: Collection[int],
    special_tokens: bool,
) -> list[int]:
    """Positions of a region whose tokens may give way.

    Args:
        chat: the prompt.
        region: of it.
        ordinary: tokens that are neither special nor added.
        special_tokens: the others may give way, too.

    Raises:
        TemplateError: the region has no token, or none that may give way.
    """
    positions = chat.require(region)
    if special_tokens:
        return positions
    found = [position for position in positions if chat.input_ids[position] in ordinary]
    if not found:
        raise TemplateError(
            f"the {region} has special tokens alone, which stay: perturb another region, or allow "
            "them to be replaced (--special-tokens)."
        )
    return found


def neighbours_of(
    embedding: Tensor,
    tokens: Sequence[int],
    num: int,
    ordinary: Sequence[int],
    max_bytes: int = SEARCH_BYTES,
) -> dict[int, tuple[int, ...]]:
    """Returns the tokens whose input embeddings have the largest dot product with a token's own.

    The matrix of all products is never held: rows of the embedding are taken chunk by chunk.

    Args:
        embedding: (V, D) input embedding matrix, in any precision, on any device.
        tokens: N ids.
        num: K.
        ordinary: ids that may be neighbours; no token is its own.
        max_bytes: of the search; the rows that are compared at a time follow from it.

    Returns:
        K ids for each token, nearest first.

    Raises:
        ConfigError: there are not as many other tokens, or the embedding is not in memory.
    """
    if num >= len(ordinary):
        raise ConfigError(
            f"num_neighbours is {num}, but the vocabulary has {len(ordinary)} ordinary "
            "tokens: take fewer."
        )
    if embedding.is_meta:
        raise ConfigError("the input embedding is offloaded to disk: keep it in memory to perturb.")
    if not tokens:
        return {}
    ids = torch.tensor(sorted(set(tokens)), dtype=torch.long)
    # Each row compared is held once in float32, beside its products with all tokens, which are
    # copied a few times while the best are sorted out.
    row_bytes = 4 * (embedding.shape[1] + 8 * len(ids))
    chunk_size = max(1, max_bytes // row_bytes)
    wanted = embedding.detach()[ids.to(embedding.device)].float()  # (N, D)
    barred = torch.ones(len(embedding), dtype=torch.bool)
    barred[torch.tensor(ordinary, dtype=torch.long)] = False
    scores = torch.empty(len(ids), 0)
    found = torch.empty(len(ids), 0, dtype=torch.long)
    for start in range(0, len(embedding), chunk_size):
        rows = torch.arange(start, min(start + chunk_size, len(embedding)))
        chunk = (wanted @ embedding.detach()[start : start + chunk_size].float().T).cpu()
        chunk[barred[rows].expand_as(chunk) | (rows == ids[:, None])] = -torch.inf
        scores = torch.cat((scores, chunk), dim=1)
        found = torch.cat((found, rows.expand(len(ids), -1)), dim=1)
        scores, best = scores.topk(min(num, scores.shape[1]), dim=1)
        found = found.gather(1, best)
    return {token: tuple(row) for token, row in zip(ids.tolist(), found.tolist(), strict=True)}


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
