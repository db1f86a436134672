"""Eq. (2): how far keys and values have moved from the reference, on one flat list of tokens.

The held tokens of a batch, of whatever regions and conversations, are one list of N. `take` copies
their states out of a layer while it runs; `drift_by_part` compares them with the reference in few
operations, for as many layers at once as have states of one shape.

Shapes: B batch rows, C batch columns, H key/value heads, D head dimension, N held tokens, M tokens
of the reference, S tensors (a layer's keys or values) stacked together, P parts of the penalty (the
held regions, or one part for all of them together); `...` any leading axes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_STACKED_VECTORS = 65_536
"""Token vectors that are compared in one operation; this bounds the memory of the copies."""


def squared_norm(states: Tensor) -> Tensor:
    """Squared length of each token's whole vector, all heads together, in float32.

    Args:
        states: (..., H, T, D).

    Returns:
        (..., T).
    """
    return states.float().square().sum(dim=(-3, -1))


def token_drift(states: Tensor, reference: Tensor) -> Tensor:
    """Relative squared distance of each token's vector from the reference (summand of eq. (2)).

    A token's vector spans all key/value heads, so heads are summed before dividing. The reference
    is a constant: no gradient reaches it.

    Args:
        states: keys or values of the running model, (..., H, T, D).
        reference: those of the unfinetuned model at the same tokens, broadcastable to `states`.

    Returns:
        (..., T) in float32; exactly 0 where the two are equal.
    """
    reference = reference.detach().float()
    return squared_norm(states.float() - reference) / squared_norm(reference)


class HeldToken(NamedTuple):
    """One token that is compared with the reference.

    Attributes:
        row: its batch row.
        column: its batch column.
        reference: index of the reference token it is compared with.
        share: what it counts in the mean of its part, 1 / |T|.
        part: index of the part of the penalty that it belongs to.
    """

    row: int
    column: int
    reference: int
    share: float
    part: int


class HeldTokens(NamedTuple):
    """A batch's held tokens as tensors: `rows`, `columns`, `references` (N,); `shares` (N, P).

    A token's share is 0 in the parts that it does not belong to, so that the sum over tokens by
    part is deterministic on every device (`index_add` on a GPU is not).
    """

    rows: Tensor
    columns: Tensor
    references: Tensor
    shares: Tensor

    @classmethod
    def of(cls, tokens: Sequence[HeldToken], num_parts: int, device: torch.device) -> HeldTokens:
        """Returns the list as tensors on `device`.

        Args:
            tokens: at least one; none twice.
            num_parts: P.
            device: where the model's first layer is.
        """
        rows, columns, references, shares, parts = (
            torch.tensor(column, device=device) for column in zip(*tokens, strict=True)
        )
        by_part = torch.nn.functional.one_hot(parts, num_parts) * shares[:, None]
        return cls(rows, columns, references, by_part)

    def to(self, device: torch.device) -> HeldTokens:
        """Returns the same on the device of a later layer."""
        return HeldTokens(*(tensor.to(device) for tensor in self))

    def take(self, states: Tensor) -> Tensor:
        """Copy the held tokens' vectors out of (B, H, C, D), so that the rest need not be kept.

        Returns:
            (H, N, D), part of the model's graph.
        """
        taken: Tensor = _Take.apply(  # type: ignore[no-untyped-call]
            states, self.rows.to(states.device), self.columns.to(states.device)
        )
        return taken


class _Take(torch.autograd.Function):
    """Advanced indexing that saves no tensor, so that checkpointing's replay may leave it out.

    No token is taken twice, so the backward pass may write instead of adding up.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        ctx.rows, ctx.columns, ctx.shape = rows, columns, states.shape
        return states.transpose(0, 1)[:, rows, columns]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        full = gradient.new_zeros(ctx.shape)
        full.transpose(0, 1)[:, ctx.rows, ctx.columns] = gradient
        return full, None, None


def drift_by_part(states: Tensor, reference: Tensor, tokens: HeldTokens) -> Tensor:
    """Eq. (2) for S tensors: token means of the drift by part, summed over the conversations.

    Args:
        states: of the held tokens, (S, H, N, D).
        reference: (S, H, M, D).
        tokens: of the batch.

    Returns:
        (S, P) in float32, with gradient.
    """
    tokens = tokens.to(states.device)
    drift = token_drift(states, reference.index_select(2, tokens.references))
    return (drift[..., None] * tokens.shares).sum(dim=1)


def chunks(num_tensors: int, num_tokens: int) -> Iterator[slice]:
    """Yields which of S tensors of N tokens each to compare together, see `MAX_STACKED_VECTORS`."""
    size = max(1, MAX_STACKED_VECTORS // num_tokens)
    yield from (slice(start, start + size) for start in range(0, num_tensors, size))
