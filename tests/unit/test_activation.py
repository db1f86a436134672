"""Activation patching against layers run by hand, hybrid models, and identities it must keep."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from finetuned import ARCHITECTURES, Spy, adapted, add_noise, assert_close, chat_pair, precise
from peft import LoraConfig, get_peft_model
from stepwise import patched_logits
from streams import by_layers, padded_batch, prefix_states_by_hand
from torch import nn
from transformers import PreTrainedTokenizerBase

from treft.chat.regions import ChatRegions, find_regions
from treft.errors import ConfigError, ReferenceMismatchError, TemplateError
from treft.models.repair import RepairedModel, generate, patch
from treft.models.residual import ResidualReference, patched_residual, stream_bank

Models = Callable[..., tuple[Any, Any]]
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Where?"}],
    [
        {"role": "system", "content": "The river is fine."},
        {"role": "user", "content": "What is the weather like today?"},
    ],
    [
        {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "content": "Near the bank."},
        {"role": "user", "content": "And the weather?"},
    ],
]
"""Two prefixes of different lengths; a conversation of two turns."""

GREEDY: dict[str, Any] = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False}


@pytest.fixture
def models(tiny_model: Callable[..., Any]) -> Models:
    """`models(name)`: a finetuned model and its base."""

    return functools.partial(chat_pair, tiny_model)


@pytest.fixture
def chats(chat_tokenizer: PreTrainedTokenizerBase) -> list[ChatRegions]:
    return [find_regions(chat_tokenizer, chat, add_generation_prompt=True) for chat in CHATS]


def stream_patch(
    model: Any, tokenizer: PreTrainedTokenizerBase, layers: Any, reference: Any = None
) -> RepairedModel:
    return patch(model, tokenizer, reference=stream_bank(model, layers, reference))


def assert_generated_as_by_hand(
    output: Any, chats: Sequence[ChatRegions], tuned: Any, base: Any, layers: Sequence[int]
) -> None:
    """Logits of the second step, for which prefill and one step of decoding must be right."""
    by_length = sorted(chats, key=lambda chat: len(chat.input_ids))
    for row, chat in enumerate(by_length):
        states = prefix_states_by_hand(tuned, base, chat, layers)
        ids = [*chat.input_ids, int(output.sequences[row, -2])]
        assert_close(output.logits[1][row], patched_logits(tuned, ids, states))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_answers_equal_a_cache_written_by_half_of_each_model(
    models: Models,
    chats: list[ChatRegions],
    chat_tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    tuned, base = models(name)
    spy = Spy(tuned, monkeypatch)
    stream_patch(tuned, chat_tokenizer, 0, base).generate(CHATS[:2], **GREEDY)
    generate(tuned, chat_tokenizer, CHATS[:2], **GREEDY)
    patched, plain = spy.outputs
    assert_generated_as_by_hand(patched, chats[:2], tuned, base, [0])
    assert (patched.logits[0] - plain.logits[0]).abs().max() > 1e-3


@pytest.mark.parametrize("layers", [[0], [1], [2], [0, 2]], ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_each_layer_and_several_at_once(
    models: Models,
    chats: list[ChatRegions],
    chat_tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    layers: list[int],
) -> None:
    tuned, base = models(name, **({"num_hidden_layers": 4} if name == "llama" else {}))
    spy = Spy(tuned, monkeypatch)
    stream_patch(tuned, chat_tokenizer, layers, base).generate(CHATS, **GREEDY)
    assert_generated_as_by_hand(spy.outputs[0], chats, tuned, base, layers)


@pytest.mark.parametrize("region", ["prefix", "query", "postfix"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_a_forward_equals_its_layers_run_by_hand(
    models: Models, chats: list[ChatRegions], name: str, side: str, region: Any
) -> None:
    tuned, base = models(name, num_hidden_layers=4)
    batch = padded_batch(chats, side)
    layer = 1
    with (
        torch.no_grad(),
        patched_residual(tuned, batch, chats, layer, regions=[region], reference=base),
    ):
        found = tuned(**batch).logits
    for row, chat in enumerate(chats):
        start = 0 if side == "right" else found.shape[1] - len(chat.input_ids)
        logits = found[row, start : start + len(chat.input_ids)]
        assert_close(logits, by_layers(tuned, base, chat, layer, region))


def test_own_states_change_no_logit(any_model: Any, chats: list[ChatRegions]) -> None:
    model = precise(any_model)
    batch = padded_batch(chats)
    every = range(model.config.num_hidden_layers)
    with torch.no_grad():
        plain = model(**batch).logits
        with patched_residual(
            model, batch, chats, every, regions=["prefix", "query"], reference=copy.deepcopy(model)
        ):
            patched = model(**batch).logits
    real = batch["attention_mask"].bool()
    assert_close(patched[real], plain[real])


def test_the_last_layer_changes_no_answer(
    models: Models,
    chats: list[ChatRegions],
    chat_tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tuned, base = models("qwen3")
    spy = Spy(tuned, monkeypatch)
    stream_patch(tuned, chat_tokenizer, -1, base).generate(CHATS, **GREEDY)
    generate(tuned, chat_tokenizer, CHATS, **GREEDY)
    patched, plain = spy.outputs
    assert_close(torch.stack(patched.logits), torch.stack(plain.logits))


def test_a_finetune_of_the_first_layers_output_is_undone_like_by_its_keys_and_values(
    tiny_model: Callable[..., Any],
    chat_tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, tuned = (precise(tiny_model("llama")) for _ in range(2))
    add_noise(tuned.model.layers[0].mlp, scale=0.3)
    spy = Spy(tuned, monkeypatch)
    stream_patch(tuned, chat_tokenizer, 0, base).generate(CHATS, **GREEDY)
    patch(tuned, chat_tokenizer, reference=base).generate(CHATS, **GREEDY)
    generate(tuned, chat_tokenizer, CHATS, **GREEDY)
    stream, cache, plain = (torch.stack(output.logits) for output in spy.outputs)
    assert_close(stream, cache)
    assert (stream - plain).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_oss"])
def test_generate_in_the_block_equals_the_prepared_answer(
    models: Models,
    chats: list[ChatRegions],
    chat_tokenizer: PreTrainedTokenizerBase,
    name: str,
) -> None:
    tuned, base = models(name)
    streams = ResidualReference(tuned, base)
    repaired = stream_patch(tuned, chat_tokenizer, 0, streams)
    batch = padded_batch(chats)
    del batch["position_ids"]
    for options in (
        {"do_sample": False},
        {"num_beams": 3, "num_return_sequences": 2, "do_sample": False},
        {"do_sample": True, "top_k": 1, "num_return_sequences": 2},
    ):
        options |= {"max_new_tokens": 5, "pad_token_id": 0}
        with patched_residual(tuned, batch, chats, 0, reference=streams):
            sequences = tuned.generate(**batch, **options)
        answers = chat_tokenizer.batch_decode(
            sequences[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
        assert answers == repaired.generate(CHATS, **options)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_batches_do_not_matter_nor_chunks_of_the_prompt(
    models: Models, chat_tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    tuned, base = models(name)
    repaired = stream_patch(tuned, chat_tokenizer, 0, base)
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    alone = [repaired.generate([chat], **options)[0] for chat in CHATS]
    assert repaired.generate(CHATS, **options) == alone
    assert repaired.generate(CHATS[::-1], batch_size=2, **options) == alone[::-1]
    assert repaired.generate(CHATS, prefill_chunk_size=5, **options) == alone
    assert generate(tuned, chat_tokenizer, CHATS, **options) != alone


def test_a_sweep_visits_each_layer_and_records_each_prefix_once(
    models: Models, chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    tuned, base = models("gemma3")
    forwards: list[int] = []
    base.register_forward_hook(lambda *_: forwards.append(1))
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    streams = ResidualReference(tuned, base)
    answers = {
        layer: repaired.generate(CHATS, **options)
        for layer in range(3)
        for repaired in [stream_patch(tuned, chat_tokenizer, layer, streams)]
    }
    assert list(answers) == [0, 1, 2]
    assert len(forwards) == 2  # distinct prefixes
    assert answers[2] == generate(tuned, chat_tokenizer, CHATS, **options) != answers[0]
    last_but_one = stream_patch(tuned, chat_tokenizer, -2, streams)
    assert last_but_one.generate(CHATS, **options) == answers[1]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_adapter_is_its_own_reference(
    models: Models,
    chats: list[ChatRegions],
    chat_tokenizer: PreTrainedTokenizerBase,
    name: str,
) -> None:
    _, base = models(name)
    tuned = adapted(copy.deepcopy(base)).to(base.dtype)
    batch = padded_batch(chats)
    logits = []
    with torch.no_grad():
        for reference in (None, base):
            with patched_residual(tuned, batch, chats, 0, reference=reference):
                logits.append(tuned(**batch).logits)
        plain = tuned(**batch).logits
    assert_close(logits[0], logits[1])
    assert (logits[0] - plain).abs().max() > 1e-3
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    by_adapter, by_base = (
        stream_patch(tuned, chat_tokenizer, 0, reference).generate(CHATS, **options)
        for reference in (None, base)
    )
    assert by_adapter == by_base != generate(tuned, chat_tokenizer, CHATS, **options)
    assert [name for name, p in tuned.named_parameters() if p.requires_grad]


def test_a_response_after_the_prompt_can_be_scored_and_gets_gradient(
    models: Models, chats: list[ChatRegions]
) -> None:
    tuned, base = models("llama")
    ids = torch.tensor([[*chats[0].input_ids, 9, 8, 7]])
    gradients = []
    for checkpointing in (False, True):
        tuned.train()
        if checkpointing:
            tuned.gradient_checkpointing_enable({"use_reentrant": False})
        tuned.zero_grad()
        with patched_residual(tuned, {"input_ids": ids}, chats[:1], 0, reference=base):
            tuned(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        gradients.append(tuned.model.layers[0].mlp.up_proj.weight.grad.clone())
        assert tuned.training
    assert gradients[0].abs().max() > 0
    assert_close(gradients[0], gradients[1])


def num_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_hooks_are_gone_after_an_exception(
    models: Models,
    chats: list[ChatRegions],
    chat_tokenizer: PreTrainedTokenizerBase,
) -> None:
    tuned, base = models("llama")
    batch = padded_batch(chats)
    plain = tuned(**batch).logits
    with (  # noqa: PT012
        pytest.raises(RuntimeError, match="interrupted"),
        patched_residual(tuned, batch, chats, [0, 1], reference=base),
    ):
        assert num_hooks(tuned) == 2
        raise RuntimeError("interrupted")
    with (
        pytest.raises(ConfigError, match="12 came"),
        patched_residual(tuned, batch, chats, 0, reference=base),
    ):
        tuned(input_ids=torch.ones(3, 12, dtype=torch.long))

    def broken(*_: Any) -> None:
        raise RuntimeError("out of memory")

    handle = tuned.model.norm.register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        stream_patch(tuned, chat_tokenizer, 0, base).generate(CHATS)
    handle.remove()
    assert num_hooks(tuned) == num_hooks(base) == 0
    assert torch.equal(tuned(**batch).logits, plain)


def test_what_is_not_one_forward_of_the_batch_is_refused(
    models: Models, chats: list[ChatRegions]
) -> None:
    tuned, base = models("llama")
    batch = padded_batch(chats)
    with (
        pytest.raises(ConfigError, match="no prefill in chunks"),
        patched_residual(tuned, batch, chats, 0, reference=base),
    ):
        tuned.generate(**batch, max_new_tokens=2, prefill_chunk_size=1)
    with (
        pytest.raises(ConfigError, match="no forward of this model"),
        patched_residual(tuned, batch, chats, 0, reference=base),
    ):
        base(**batch)
    with (
        pytest.raises(ConfigError, match="row 0 of the batch does not begin"),
        patched_residual(tuned, batch, chats[::-1], 0, reference=base),
    ):
        pass
    unmasked = {"input_ids": batch["input_ids"]}
    with (
        pytest.raises(ConfigError, match="pass the attention mask"),
        patched_residual(tuned, unmasked, chats, 0, reference=base),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="3 rows for 2 conversations"),
        patched_residual(tuned, batch, chats[:2], 0, reference=base),
    ):
        pass


def test_layers_regions_and_references_that_are_not_there_are_refused(
    models: Models, tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    tuned, base = models("llama")
    for layers in (2, -3, [0, 5], []):
        with pytest.raises(ConfigError, match="some of 0 to 1"):
            stream_patch(tuned, chat_tokenizer, layers, base)
    with pytest.raises(ConfigError, match="no PEFT adapter"):
        stream_patch(tuned, chat_tokenizer, 0)
    with pytest.raises(ReferenceMismatchError, match="structure"):
        stream_patch(tuned, chat_tokenizer, 0, tiny_model("qwen3").double())
    fresh = get_peft_model(copy.deepcopy(tuned), LoraConfig(target_modules="all-linear"))
    with pytest.raises(ReferenceMismatchError, match="weights"):
        stream_patch(fresh, chat_tokenizer, 0, base)
    bare = "{% for m in messages %}{{ m['content'] + '|' }}{% endfor %}"
    with pytest.raises(TemplateError, match="no prefix"):
        stream_patch(tuned, chat_tokenizer, 0, base).generate(CHATS[:1], chat_template=bare)
    without = find_regions(chat_tokenizer, CHATS[0], chat_template=bare)
    batch = {"input_ids": torch.tensor([without.input_ids])}
    with (
        pytest.raises(TemplateError, match="no prefix"),
        patched_residual(tuned, batch, [without], 0, reference=base),
    ):
        pass
    batch = {"input_ids": torch.tensor([find_regions(chat_tokenizer, CHATS[0]).input_ids])}
    for regions in ([], ["prefx"]):
        with (
            pytest.raises(ConfigError, match="regions to patch"),
            patched_residual(tuned, batch, [without], 0, regions=regions, reference=base),
        ):
            pass
