"""The residual stream against Transformers' own hidden states, and its unfinetuned reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from finetuned import pair
from torch import nn
from transformers import Gemma3nTextConfig
from transformers.models.auto import AutoModelForCausalLM

from treft.core.recording import ReferenceRequest
from treft.core.states import resolve_layers
from treft.errors import AttentionError, ReferenceMismatchError
from treft.models.residual import ResidualReference, residual_stream

IDS = (7, 91, 23, 140, 5)
REQUEST = ReferenceRequest(IDS, tuple(range(len(IDS))), (1, 3))


@torch.no_grad()
def hidden_states(model: Any) -> Any:
    return model(input_ids=torch.tensor([IDS]), output_hidden_states=True).hidden_states


def test_a_layers_stream_is_the_next_hidden_state_of_transformers(any_model: Any) -> None:
    expected = hidden_states(any_model)
    with residual_stream(any_model) as found, torch.no_grad():
        any_model(input_ids=torch.tensor([IDS]))
    assert list(found) == list(range(any_model.config.num_hidden_layers))
    for layer in list(found)[:-1]:
        assert torch.equal(found[layer], expected[layer + 1])
    # Transformers shows the last one after the final norm.
    decoder = any_model.get_decoder()
    with torch.no_grad():
        assert torch.equal(decoder.norm(found[len(found) - 1]), expected[-1])


def test_a_reference_is_the_bases_stream_at_the_kept_tokens(
    tiny_model: Callable[..., Any],
) -> None:
    tuned, base = pair(tiny_model, "gemma3")
    found = ResidualReference(tuned, base).get(REQUEST)
    expected = hidden_states(base)
    for layer in (0, 1):
        torch.testing.assert_close(found[layer], expected[layer + 1][0, [1, 3]])
    assert found[2].shape == (2, 32)
    assert not any(stream.requires_grad for stream in found.values())


def test_streams_are_kept_up_to_a_limit(tiny_model: Callable[..., Any]) -> None:
    tuned, base = pair(tiny_model, "llama")
    forwards: list[int] = []
    base.register_forward_hook(lambda *_: forwards.append(1))
    other = ReferenceRequest(IDS[:3], (0, 1, 2), (0, 1))
    for max_tokens, expected in ((4, 2), (3, 4)):
        forwards.clear()
        reference = ResidualReference(tuned, base, max_tokens)
        for request in (REQUEST, other, REQUEST, other):
            reference.get(request)
        assert len(forwards) == expected


def test_negative_layers_count_from_the_last(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("gemma3")
    assert resolve_layers(model, -1) == [2]
    assert resolve_layers(model, [2, 0, -1]) == [0, 2]


def test_models_without_one_residual_stream_a_layer_are_refused(
    tiny_model: Callable[..., Any],
) -> None:
    model = tiny_model("llama")
    with pytest.raises(ReferenceMismatchError, match="structure"):
        ResidualReference(model, tiny_model("qwen3"))
    model.config.num_hidden_layers = 7
    with pytest.raises(AttentionError, match="2 found, 7 expected"), residual_stream(model):
        pass
    config = Gemma3nTextConfig(
        vocab_size=320, vocab_size_per_layer_input=320, hidden_size=32, intermediate_size=48,
        hidden_size_per_layer_input=8, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, num_kv_shared_layers=0, laurel_rank=4, altup_num_inputs=2,
        layer_types=["full_attention"] * 2, activation_sparsity_pattern=[0.0] * 2,
    )  # fmt: skip
    several = AutoModelForCausalLM.from_config(config)
    with (
        pytest.raises(AttentionError, match="not one residual stream"),
        residual_stream(several),
    ):
        several(input_ids=torch.tensor([IDS]))
    assert not [module for module in several.modules() if module._forward_hooks]


def test_hooks_are_gone_after_an_exception(tiny_model: Callable[..., Any]) -> None:
    model: nn.Module = tiny_model("llama")
    with pytest.raises(RuntimeError, match="interrupted"), residual_stream(model):
        raise RuntimeError("interrupted")
    assert not [module for module in model.modules() if module._forward_hooks]
