"""Eq. (2): how far keys and values have moved from the reference, on one flat list of tokens.

The held tokens of a batch, of whatever regions and conversations, are one list of N. A layer's keys
or values are compared with the reference's in few operations while the layer runs, so that under
gradient checkpointing nothing of them outlives it.

Shapes: B batch rows, C batch columns, H key/value heads, D head dimension, N held tokens, M tokens
of the reference, P parts of the penalty (the held regions, or one part for all of them together);
`...` any leading axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


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

    def drift(self, states: Tensor, reference: Tensor) -> Tensor:
        """Eq. (2) for one layer's keys or values: token means by part, summed over conversations.

        Args:
            states: (B, H, C, D), part of the model's graph.
            reference: (H, M, D), on the same device.

        Returns:
            (P,) in float32, with gradient.
        """
        rows, columns, references, shares = (tensor.to(states.device) for tensor in self)
        held = states.transpose(0, 1)[:, rows, columns]
        return token_drift(held, reference.index_select(1, references)) @ shares
