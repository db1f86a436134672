"""Eq. (2) against numbers worked out by hand and against float64."""

from __future__ import annotations

import pytest
import torch

from treft.core.drift import HeldToken, HeldTokens, drift_by_part, token_drift


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
    reference = torch.ones(2, 1, 2, 1)  # keys and values of two reference tokens, one head
    states = torch.tensor([[[[2.0], [1.0], [4.0]]], [[[3.0], [0.0], [1.0]]]])
    tokens = HeldTokens.of(
        [HeldToken(0, 0, 0, 0.5, 0), HeldToken(0, 1, 1, 0.5, 0), HeldToken(1, 0, 0, 1.0, 1)],
        num_parts=2,
        device=torch.device("cpu"),
    )
    assert drift_by_part(states, reference, tokens).tolist() == [[0.5, 9.0], [2.5, 0.0]]


def test_taken_tokens_pass_their_gradient_on_and_save_nothing() -> None:
    states = torch.randn(2, 3, 5, 4, requires_grad=True)
    tokens = HeldTokens.of(
        [HeldToken(1, 4, 0, 1.0, 0), HeldToken(0, 2, 1, 1.0, 0)], 1, torch.device("cpu")
    )
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda found: saved.append(found), lambda _: _):
        taken = tokens.take(states)
    assert not saved
    assert torch.equal(taken, torch.stack([states[1, :, 4], states[0, :, 2]], dim=1))
    factor = torch.randn(3, 2, 4)
    (taken * factor).sum().backward()
    expected = torch.zeros(2, 3, 5, 4)
    expected[1, :, 4], expected[0, :, 2] = factor[:, 0], factor[:, 1]
    assert torch.equal(states.grad, expected)
