"""Eq. (2) against numbers worked out by hand and against float64."""

from __future__ import annotations

import pytest
import torch

from treft.core.drift import HeldToken, HeldTokens, token_drift


def test_a_token_is_one_vector_over_all_heads() -> None:
    reference = torch.tensor([[[3.0, 0.0]], [[0.0, 4.0]]])  # two heads, one token: norm 5
    states = torch.tensor([[[3.0, 1.0]], [[2.0, 4.0]]])  # squared distance 1 + 4
    assert token_drift(states, reference).tolist() == pytest.approx([5 / 25])


def test_equal_states_have_exactly_no_drift_and_no_gradient_trouble() -> None:
    states = torch.randn(2, 3, 5, 4, requires_grad=True)
    drift = token_drift(states, states.detach())
    assert drift.shape == (2, 5)
    assert drift.eq(0).all()
    drift.sum().backward()
    assert states.grad is not None
    assert states.grad.eq(0).all()


def test_gradient_reaches_the_states_and_not_the_reference() -> None:
    states = torch.randn(3, 5, 4, requires_grad=True)
    reference = torch.randn(3, 5, 4, requires_grad=True)
    token_drift(states, reference).sum().backward()
    assert reference.grad is None
    norms = reference.detach().square().sum(dim=(0, 2))[None, :, None]
    torch.testing.assert_close(states.grad, 2 * (states - reference).detach() / norms)


def test_low_precision_states_are_compared_in_float32() -> None:
    states, reference = torch.randn(2, 3, 6, 8).bfloat16(), torch.randn(3, 6, 8).bfloat16()
    found = token_drift(states, reference)
    difference = states.double() - reference.double()
    expected = difference.square().sum((-3, -1)) / reference.double().square().sum((-3, -1))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


def test_tokens_of_one_list_are_averaged_by_part() -> None:
    reference = torch.ones(1, 2, 1)  # two reference tokens, one head
    states = torch.zeros(2, 1, 3, 1)
    states[0, 0, 2], states[0, 0, 1], states[1, 0, 0] = 2.0, 1.0, 4.0
    tokens = HeldTokens.of(
        [HeldToken(0, 2, 0, 0.5, 0), HeldToken(0, 1, 1, 0.5, 0), HeldToken(1, 0, 0, 1.0, 1)],
        num_parts=2,
        device=torch.device("cpu"),
    )
    assert tokens.drift(states, reference).tolist() == [0.5, 9.0]


def test_gradient_reaches_the_held_tokens_alone() -> None:
    states = torch.randn(2, 3, 5, 4, requires_grad=True)
    reference = torch.randn(3, 2, 4)
    tokens = HeldTokens.of(
        [HeldToken(1, 4, 1, 0.5, 0), HeldToken(0, 2, 0, 1.0, 0)], 1, torch.device("cpu")
    )
    tokens.drift(states, reference).sum().backward()
    expected = torch.zeros(2, 3, 5, 4)
    with torch.no_grad():
        for (row, column), known, share in (((1, 4), 1, 0.5), ((0, 2), 0, 1.0)):
            moved = states[row, :, column] - reference[:, known]
            norm = reference[:, known].square().sum()
            expected[row, :, column] = 2 * share * moved / norm
    torch.testing.assert_close(states.grad, expected)
