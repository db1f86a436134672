"""Capture is exact, harmless, confined to its model and gone afterwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conversations import conversation, padded
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from treft.core.states import capturable, capture
from treft.errors import AttentionError

TinyModel = Callable[..., PreTrainedModel]
LONG = padded([conversation(0, num_turns=2), conversation(4)]).model_inputs


def run(model: torch.nn.Module, **overrides: object) -> Tensor:
    return model(**{**LONG, "use_cache": False, **overrides}).logits


def cached_states(model: PreTrainedModel) -> list[tuple[Tensor, Tensor]]:
    """What Transformers itself stores, from layers that keep every token."""
    cache = DynamicCache()
    model(**LONG, past_key_values=cache)
    return [(layer.keys, layer.values) for layer in cache.layers]


def test_captured_states_equal_the_cache_and_change_no_logit(any_model: PreTrainedModel) -> None:
    with torch.no_grad():
        plain = run(any_model)
        with capture(any_model) as states:
            captured = run(any_model)
        expected = cached_states(any_model)
    assert torch.equal(captured, plain)
    assert list(states) == list(range(len(expected)))
    for layer, (key, value) in enumerate(expected):
        assert torch.equal(states[layer].key, key)
        assert torch.equal(states[layer].value, value)


def test_gradient_equals_that_through_the_cache(any_model: PreTrainedModel) -> None:
    parameters = [p for p in any_model.parameters() if p.requires_grad]

    def gradients(pairs: list[tuple[Tensor, Tensor]]) -> list[Tensor | None]:
        total = sum((key.square().sum() + value.sin().sum()) for key, value in pairs)
        assert isinstance(total, Tensor)
        return list(torch.autograd.grad(total, parameters, allow_unused=True))

    with capture(any_model) as states:
        run(any_model)
    found = gradients([tuple(pair) for pair in states.values()])
    expected = gradients(cached_states(any_model))
    assert sum(gradient is not None for gradient in found) > 4
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_oss"])
def test_checkpointing_leaves_states_and_gradient_alone(tiny_model: TinyModel, name: str) -> None:
    def gradients(checkpointing: bool) -> tuple[list[Tensor], dict[int, tuple[Tensor, Tensor]]]:
        model = tiny_model(name).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        with capture(model) as states:
            logits = run(model)
            heard = dict(states)
            penalty = [tensor.square().mean() for pair in heard.values() for tensor in pair]
            (logits.square().mean() + torch.stack(penalty).sum()).backward()
        assert all(states[layer].key is heard[layer].key for layer in heard), "replay was recorded"
        return [p.grad for p in model.parameters() if p.grad is not None], heard

    plain, plain_states = gradients(False)
    replayed, replayed_states = gradients(True)
    for layer, pair in plain_states.items():
        assert torch.equal(pair[0], replayed_states[layer][0])
    assert len(plain) == len(replayed)
    for mine, theirs in zip(replayed, plain, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("options", [{"use_reentrant": True}, {"preserve_rng_state": True}])
def test_reentrant_checkpointing_is_refused_only_where_it_would_cut_the_graph(
    tiny_model: TinyModel, options: dict[str, bool]
) -> None:
    model = tiny_model("llama").train()
    model.activation_checkpointing_enable(options)
    with pytest.raises(AttentionError, match="use_reentrant"), capture(model):
        pytest.fail("the block was entered")
    with torch.no_grad(), capture(model) as states:
        run(model)
    assert len(states) == 2


def test_attention_is_restored_after_an_exception(any_model: PreTrainedModel) -> None:
    before = any_model.config._attn_implementation
    expected = run(any_model)
    states: dict[int, object] = {}

    def fail_inside_capture() -> None:
        nonlocal states
        with capture(any_model) as states:
            assert any_model.config._attn_implementation == f"treft_{before}"
            run(any_model)
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fail_inside_capture()
    assert any_model.config._attn_implementation == before
    num_heard = len(states)
    assert torch.equal(run(any_model), expected)
    assert len(states) == num_heard


def test_blocks_nest_and_the_innermost_capture_hears(tiny_model: TinyModel) -> None:
    model = tiny_model("llama")
    with capturable(model), capture(model) as outer:
        run(model)
        heard = outer[0].key
        with capture(model) as inner:
            run(model, input_ids=LONG["input_ids"].flip(1))
        assert outer[0].key is heard
        assert not torch.equal(inner[0].key, heard)
        assert model.config._attn_implementation == "treft_sdpa"
    assert model.config._attn_implementation == "sdpa"


def test_models_do_not_mix(tiny_model: TinyModel) -> None:
    one, two = tiny_model("llama", seed=0), tiny_model("llama", seed=1)
    with capture(one) as states_of_one, capture(two) as states_of_two:
        run(one)
        run(two)
    for model, states in ((one, states_of_one), (two, states_of_two)):
        assert torch.equal(states[1].key, cached_states(model)[1][0])


def test_peft_wrapped_model_is_heard_with_its_adapter(tiny_model: TinyModel) -> None:
    model = get_peft_model(
        tiny_model("qwen3"), LoraConfig(target_modules=["k_proj"], init_lora_weights=False)
    )
    with capture(model) as states:
        run(model)
    assert torch.equal(states[0].key, cached_states(model)[0][0])
    assert states[0].key.requires_grad


def test_only_the_text_decoder_of_a_multimodal_model_is_heard(tiny_model: TinyModel) -> None:
    text = tiny_model("gemma3").config.to_dict()
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 5,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(text_config=text, vision_config=vision, image_token_index=300)
    model = Gemma3ForConditionalGeneration(config).eval()
    vision_before = config.vision_config._attn_implementation
    with torch.no_grad(), capture(model) as states:
        assert config.vision_config._attn_implementation == vision_before
        run(model)
    assert sorted(states) == [0, 1, 2]
    assert config.text_config._attn_implementation == vision_before


def test_attention_that_looks_itself_up_by_name_finds_its_own_name(tiny_model: TinyModel) -> None:
    """Flash attention chooses its kernel by the name in the config."""
    seen: set[str] = set()

    def by_name(module: torch.nn.Module, *args: Tensor, **kwargs: object) -> object:
        seen.add(module.config._attn_implementation)
        return sdpa_attention_forward(module, *args, **kwargs)

    AttentionInterface.register("test_flash", by_name)
    AttentionMaskInterface.register("test_flash", sdpa_mask)
    model = tiny_model("llama")
    expected = run(model)
    model.config._attn_implementation_internal = "test_flash"  # the setter wants a real kernel
    with capture(model) as states:
        found = run(model)
    assert seen == {"test_flash"}
    assert torch.equal(found, expected)
    assert len(states) == 2


@pytest.mark.parametrize("name", ["no_such_attention", "paged|eager"])
def test_unknown_attention_is_refused(tiny_model: TinyModel, name: str) -> None:
    model = tiny_model("llama")
    model.config._attn_implementation_internal = name
    with pytest.raises(AttentionError, match="set_attn_implementation"), capture(model):
        pytest.fail("the block was entered")
    assert model.config._attn_implementation == name


def test_a_block_without_forward_is_an_error(tiny_model: TinyModel) -> None:
    with pytest.raises(AttentionError, match="run a forward"), capture(tiny_model("llama")):
        pass


def test_a_module_without_transformers_model_is_refused() -> None:
    with pytest.raises(AttentionError, match="Linear"), capture(torch.nn.Linear(2, 2)):
        pytest.fail("the block was entered")


@pytest.mark.slow
def test_a_whole_graph_compiles_with_the_capture_in_it(tiny_model: TinyModel) -> None:
    model = tiny_model("llama")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with capture(compiled) as states:
        logits = compiled(**LONG, use_cache=False).logits
    torch.testing.assert_close(logits, run(model))
    torch.testing.assert_close(states[1].key, cached_states(model)[1][0])
    assert states[1].key.requires_grad
