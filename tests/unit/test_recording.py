"""Recorded states are those of the unfinetuned model, exactly, and recording leaves no trace."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from conversations import conversation
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from treft.core.conversations import own_request, postfix_requests, prefix_request
from treft.core.recording import RecordedStates, ReferenceRequest, other_model, record
from treft.errors import AttentionError, ConfigError, ReferenceStatesError
from treft.models.adapters import adapter_off, only_adapter

TinyModel = Callable[..., PreTrainedModel]
CHAT = conversation(3)
SHORT = prefix_request(CHAT)
LONG = own_request(CHAT, range(2, len(CHAT.codes)), "held")


def cached(
    model: PreTrainedModel, ids: tuple[int, ...], positions: tuple[int, ...]
) -> DynamicCache:
    """Transformers' own store of one row's states."""
    cache = DynamicCache()
    with torch.no_grad():
        model(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids)),
            position_ids=torch.tensor([positions]),
            past_key_values=cache,
        )
    return cache


def assert_same(
    recorded: RecordedStates, cache: DynamicCache, start: int, **tolerance: float
) -> None:
    """`recorded` holds the cache's tokens from `start` on."""
    assert list(recorded) == list(range(len(cache.layers)))
    for layer, pair in recorded.items():
        stored = (cache.layers[layer].keys, cache.layers[layer].values)
        for mine, theirs in zip(pair, stored, strict=True):
            torch.testing.assert_close(mine, theirs[0, :, start:], **tolerance)


def test_requests_of_any_length_run_together_as_if_alone(any_model: PreTrainedModel) -> None:
    together = record(any_model, [SHORT, LONG, SHORT])
    assert_same(together[0], cached(any_model, SHORT.token_ids, SHORT.position_ids), 0)
    assert_same(together[1], cached(any_model, LONG.token_ids, LONG.position_ids), 2)
    assert not together[1][0].key.requires_grad


def test_small_forwards_give_the_same_states(tiny_model: TinyModel) -> None:
    model = tiny_model("mistral")
    for mine, theirs in zip(
        record(model, [SHORT, LONG], max_tokens=1), record(model, [SHORT, LONG]), strict=True
    ):
        for layer in mine:
            torch.testing.assert_close(mine[layer].value, theirs[layer].value)


def test_a_gap_in_positions_does_not_start_another_document(any_model: PreTrainedModel) -> None:
    """Prefix into a cache first, then the postfix at its later positions on top of it."""
    (request,) = postfix_requests(CHAT)
    num_prefix = len(request.token_ids) - len(request.keep)
    assert request.position_ids[num_prefix] > num_prefix
    cache = cached(any_model, request.token_ids[:num_prefix], request.position_ids[:num_prefix])
    with torch.no_grad():
        any_model(
            torch.tensor([request.token_ids[num_prefix:]]),
            attention_mask=torch.ones(1, len(request.token_ids)),
            position_ids=torch.tensor([request.positions]),
            past_key_values=cache,
        )
    (recorded,) = record(any_model, [request])
    assert_same(recorded, cache, num_prefix, rtol=1e-5, atol=1e-5)


def test_a_shifted_row_is_the_same_row_rotated(any_model: PreTrainedModel) -> None:
    shifted = ReferenceRequest(
        LONG.token_ids, tuple(position - 4 for position in LONG.position_ids), LONG.keep
    )
    plain, moved = record(any_model, [LONG, shifted])
    for layer in plain:
        torch.testing.assert_close(moved[layer].value, plain[layer].value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(moved[layer].key.norm(dim=-1), plain[layer].key.norm(dim=-1))
        assert not torch.allclose(moved[layer].key, plain[layer].key, atol=1e-2)


def with_adapter(model: PreTrainedModel, **options: object) -> PeftModel:
    """A LoRA that has visibly learnt."""
    config = LoraConfig(target_modules=["k_proj", "v_proj"], init_lora_weights=False, **options)
    return get_peft_model(model, config)


def assert_equal(mine: list[RecordedStates], theirs: list[RecordedStates]) -> None:
    for one, other in zip(mine, theirs, strict=True):
        for layer in one:
            assert torch.equal(one[layer].key, other[layer].key)
            assert torch.equal(one[layer].value, other[layer].value)


def test_adapter_off_is_the_base_model_and_leaves_no_trace(tiny_model: TinyModel) -> None:
    model = with_adapter(tiny_model("llama"), lora_dropout=0.5).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name)  # PEFT would switch lora_A on again
    model.get_base_model().model.layers[1].eval()
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    random_state = torch.get_rng_state()
    found = adapter_off(model)([SHORT, LONG])
    assert torch.equal(random_state, torch.get_rng_state())
    assert_equal(found, other_model(tiny_model("llama"))([SHORT, LONG]))
    assert flags == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert not torch.equal(record(model, [SHORT])[0][1].key, found[0][1].key)


def test_kept_adapter_is_the_model_before_training_went_on(tiny_model: TinyModel) -> None:
    model = with_adapter(tiny_model("llama"))
    before = record(model, [LONG])
    model.add_adapter("kept", model.peft_config["default"])
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in weights.items():
            if ".kept." in name:
                parameter.copy_(weights[name.replace(".kept.", ".default.")])
        for name, parameter in weights.items():
            if ".default." in name:
                parameter.add_(1.0)
    flags = {name: parameter.requires_grad for name, parameter in weights.items()}
    with only_adapter(model, "kept"):
        assert_equal(record(model, [LONG]), before)
    assert model.active_adapters == ["default"]
    assert flags == {name: parameter.requires_grad for name, parameter in weights.items()}


def test_sources_name_what_is_missing(tiny_model: TinyModel) -> None:
    with pytest.raises(ConfigError, match="other_model"):
        adapter_off(tiny_model("llama"))
    model = with_adapter(tiny_model("llama"))
    refused = pytest.raises(ConfigError, match=r"no adapter 'kept', only \['default'\]")
    with refused, only_adapter(model, "kept"):
        pass


def test_recording_under_autocast_does_not_cut_the_training_graph(tiny_model: TinyModel) -> None:
    """Autocast caches low-precision weights; copies made without gradient must not be found."""
    inputs = torch.tensor([CHAT.input_ids])

    def gradients(record_first: bool) -> list[Tensor | None]:
        model = tiny_model("llama").train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if record_first:
                states = record(model, [SHORT])
                assert states[0][0].value.dtype == torch.bfloat16
            model(inputs, labels=inputs).loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    for mine, theirs in zip(gradients(True), gradients(False), strict=True):
        assert mine is not None
        assert theirs is not None
        assert torch.equal(mine, theirs)


def test_states_recorded_in_inference_mode_serve_in_training(tiny_model: TinyModel) -> None:
    with torch.inference_mode():
        (recorded,) = record(tiny_model("llama"), [SHORT])
    weight = torch.ones(1, requires_grad=True)
    (weight * recorded[0].key).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("value", "projection", "message"),
    [
        (float("nan"), "v_proj", "value of layer 1 .*NaN or infinite"),
        (float("inf"), "k_proj", "key of layer 1 .*NaN or infinite"),
        (0.0, "v_proj", "value of layer 1 .*zero norm"),
    ],
)
def test_unusable_vectors_are_named(
    tiny_model: TinyModel, value: float, projection: str, message: str
) -> None:
    model = tiny_model("llama")
    weight = getattr(model.model.layers[1].self_attn, projection).weight
    with torch.no_grad():
        weight.mul_(0).add_(value)
    with pytest.raises(ReferenceStatesError, match=rf"{message}"):
        record(model, [SHORT])


def test_the_offending_token_is_named(tiny_model: TinyModel) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[SHORT.token_ids[4]] = float("nan")
    with pytest.raises(ReferenceStatesError, match=rf"token {SHORT.token_ids[4]} \(position 4\)"):
        record(model, [SHORT])


def test_attention_is_restored_when_recording_fails(tiny_model: TinyModel) -> None:
    model = tiny_model("llama").train()
    with contextlib.suppress(IndexError):
        record(model, [ReferenceRequest((10_000,), (0,), (0,))])
    assert model.config._attn_implementation == "sdpa"
    assert model.training
    model.config._attn_implementation_internal = "no_such_attention"
    with pytest.raises(AttentionError):
        record(model, [SHORT])
