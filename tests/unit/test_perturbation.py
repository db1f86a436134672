"""Nearest tokens against all products at once, and what replacing leaves alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from treft.models.perturbation import neighbours_of, replace_tokens


@pytest.mark.parametrize("max_bytes", [1, 800, 6000, 2**20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nearest_tokens_are_those_of_the_whole_matrix(max_bytes: int, dtype: torch.dtype) -> None:
    embedding = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    ids, excluded = [3, 49, 0, 3], {0, 7, 48}
    ordinary = [token for token in range(50) if token not in excluded]
    found = neighbours_of(embedding, ids, 5, ordinary, max_bytes)
    assert set(found) == set(ids)
    matrix = embedding.float().numpy()
    for token, row in found.items():
        products = matrix @ matrix[token]
        order = [other for other in np.argsort(-products) if other not in {token, *excluded}]
        assert list(row) == order[:5]


def test_replacing_draws_positions_and_neighbours() -> None:
    ids = list(range(10))
    neighbours = {position: [100 + position, 200 + position] for position in range(2, 8)}
    changed, replaced = replace_tokens(ids, neighbours, 3, random.Random(1))
    assert len(replaced) == 3
    assert [change.position for change in replaced] == sorted(
        change.position for change in replaced
    )
    for position, (old, new) in enumerate(zip(ids, changed, strict=True)):
        change = next((found for found in replaced if found.position == position), None)
        assert (old == new) == (change is None)
        if change is not None:
            assert (change.old, change.new) == (old, new)
            assert new in neighbours[position]
    assert replace_tokens(ids, neighbours, 3, random.Random(1)) == (changed, replaced)
    others = {replace_tokens(ids, neighbours, 3, random.Random(seed))[1] for seed in range(20)}
    assert len(others) > 10
    assert ids == list(range(10))


def test_refused_neighbours_are_not_taken() -> None:
    """Only position 4 may change, and only to 204."""
    neighbours = {position: [100 + position, 200 + position] for position in range(2, 8)}
    original = list(range(10))
    changed, replaced = replace_tokens(
        original,
        neighbours,
        3,
        random.Random(0),
        lambda ids: all(new in (old, 204) for old, new in zip(original, ids, strict=True)),
    )
    assert [(change.position, change.new) for change in replaced] == [(4, 204)]
    assert changed[4] == 204
