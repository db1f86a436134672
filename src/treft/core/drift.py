"""Eq. (2): how far a token's keys and values have moved from the reference.

Shapes: L layers, B rows, H key/value heads, T tokens, D head dimension; `...` any leading axes.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from treft.core.states import KeyValue


class LayerDrift(NamedTuple):
    """L_K and L_V of one layer: means over the tokens, scalars, dimensionless."""

    key: Tensor
    value: Tensor


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


def layer_drift(states: KeyValue, reference: KeyValue) -> LayerDrift:
    """Eq. (2) for one layer: token means of the drift of keys and of values.

    Args:
        states: (..., H, T, D) each; only the tokens that count.
        reference: the same tokens' reference states.
    """
    return LayerDrift(
        token_drift(states.key, reference.key).mean(),
        token_drift(states.value, reference.value).mean(),
    )
