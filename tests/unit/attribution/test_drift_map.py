"""Drift by layer and token, against a plain recomputation from Transformers' own caches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from finetuned import ARCHITECTURES, chat_pair
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache, PreTrainedTokenizerBase

from treft.attribution.drift_map import drift_map
from treft.attribution.weights import adapter_scales
from treft.chat.regions import ChatRegions, find_regions, template_hash
from treft.core.conversations import prefix_request
from treft.core.identity import identify
from treft.core.recording import other_model
from treft.core.reference import ReferenceBank
from treft.errors import (
    DataError,
    ReferenceMismatchError,
    ReferenceStatesError,
    TemplateError,
)
from treft.models.adapters import adapter_off

WORDS = ("Where is the bank?", "What is the weather like today? Is it fine?", "River.")


def rendered(tokenizer: PreTrainedTokenizerBase, *words: str) -> list[ChatRegions]:
    return [
        find_regions(tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True)
        for text in words
    ]


@torch.no_grad()
def states_of(model: Any, chat: ChatRegions) -> torch.Tensor:
    """What Transformers itself stores: (2, layers, T, heads x size), keys first."""
    cache = DynamicCache()
    model(input_ids=torch.tensor([chat.input_ids]), past_key_values=cache, use_cache=True)
    pairs = [(layer.keys[0], layer.values[0]) for layer in cache.layers]
    return torch.stack(
        [torch.stack(kind).transpose(1, 2).flatten(2) for kind in zip(*pairs, strict=True)]
    )


def by_hand(tuned: Any, base: Any, chat: ChatRegions) -> np.ndarray[Any, Any]:
    """Eq. (2) without treft: (2, layers, tokens)."""
    running, reference = states_of(tuned, chat), states_of(base, chat)
    drift = (running - reference).square().sum(-1) / reference.square().sum(-1)
    return drift.numpy()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_token_has_the_drift_of_eq_2(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    tuned, base = chat_pair(tiny_model, name)
    chats = rendered(chat_tokenizer, *WORDS)
    bank = ReferenceBank(other_model(base))
    found = drift_map(tuned, chat_tokenizer, bank, chats, batch_size=2)
    assert found.layers == tuple(range(tuned.config.num_hidden_layers))
    for row, chat in enumerate(chats):
        assert found.positions[row] == tuple(range(len(chat.input_ids)))  # one turn: all have one
        expected = by_hand(tuned, base, chat)
        assert expected.min() >= 0
        assert expected.max() > 1e-3
        np.testing.assert_allclose(found.key[row], expected[0], rtol=2e-4, atol=1e-7)
        np.testing.assert_allclose(found.value[row], expected[1], rtol=2e-4, atol=1e-7)


def test_means_of_regions_and_labels(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    tuned, base = chat_pair(tiny_model, "llama")
    chats = rendered(chat_tokenizer, *WORDS)
    bank = ReferenceBank(other_model(base))
    found = drift_map(tuned, chat_tokenizer, bank, chats, ["postfix", "query"])
    query = found.region("query")
    for row, chat in enumerate(chats):
        expected = by_hand(tuned, base, chat)[:, :, chat.positions("query")].mean(axis=2)
        np.testing.assert_allclose(query.key[row], expected[0], rtol=2e-4)
        np.testing.assert_allclose(query.value[row], expected[1], rtol=2e-4)
        np.testing.assert_allclose(query.by_prompt[row], expected.sum(axis=0).mean(), rtol=2e-4)
        start = chat.offsets[found.positions[row][0]][0]
        assert "".join(found.labels[row]) == chat.text[start:]
    with pytest.raises(DataError, match="of postfix, query, not of prefix"):
        found.region("prefix")


def test_drift_is_where_the_finetune_acts(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    """Layer 1's values alone are changed: neither keys nor layer 0 may drift."""
    tuned, base = (tiny_model("llama") for _ in range(2))
    with torch.no_grad():
        tuned.model.layers[1].self_attn.v_proj.weight.mul_(1.5)
    bank = ReferenceBank(other_model(base))
    found = drift_map(tuned, chat_tokenizer, bank, rendered(chat_tokenizer, *WORDS))
    for region in found.regions:
        key, value = found.region(region)
        assert not key.any()
        assert not value[:, 0].any()
        np.testing.assert_allclose(value[:, 1], 0.25, rtol=1e-5)


def test_a_finetune_equal_to_its_base_has_drift_0(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    chats = rendered(chat_tokenizer, *WORDS)
    fresh = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["k_proj"])).eval()
    pairs = [(fresh, adapter_off(fresh)), (tiny_model("llama"), other_model(tiny_model("llama")))]
    for model, source in pairs:
        found = drift_map(model, chat_tokenizer, ReferenceBank(source), chats, batch_size=2)
        assert found.is_zero
    tuned, base = chat_pair(tiny_model, "llama")
    bank = ReferenceBank(other_model(base))
    assert not drift_map(tuned, chat_tokenizer, bank, chats).is_zero


def scaled_adapter(tiny_model: Callable[..., Any], alpha: float) -> Any:
    """The same small factors under any alpha."""
    config = LoraConfig(r=4, lora_alpha=alpha, target_modules=["k_proj", "v_proj", "up_proj"])
    model = get_peft_model(tiny_model("llama"), config).eval()
    torch.manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.02)
    return model


def test_alpha_changes_raw_drift_and_not_drift_over_scale_squared(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    chats = rendered(chat_tokenizer, *WORDS)
    raw, normalised, norms = [], [], []
    for alpha in (1, 2, 4):
        model = scaled_adapter(tiny_model, alpha)
        bank = ReferenceBank(adapter_off(model))
        found = drift_map(model, chat_tokenizer, bank, chats)
        scales = adapter_scales(model)
        assert scales.scale == alpha / 4
        drift = np.array([found.region(region).by_prompt.mean() for region in found.regions])
        raw.append(drift)
        normalised.append(drift / scales.scale**2)
        norms.append(scales.norm())
    for smaller, larger in ((0, 1), (1, 2)):
        np.testing.assert_allclose(raw[larger] / raw[smaller], 4, rtol=0.05)
        np.testing.assert_allclose(normalised[larger], normalised[smaller], rtol=0.05)
        assert norms[larger] / norms[smaller] == pytest.approx(2)
    # Another learnt weight, at the same scale, is told apart by both figures.
    assert normalised[0].max() / normalised[0].min() > 1.05


def test_bad_input_is_refused(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    tuned, base = chat_pair(tiny_model, "llama")
    bank = ReferenceBank(other_model(base))
    chats = rendered(chat_tokenizer, "Where?")
    with pytest.raises(DataError, match="at least one prompt"):
        drift_map(tuned, chat_tokenizer, bank, [])
    empty = rendered(chat_tokenizer, "Where?", "")
    with pytest.raises(TemplateError, match="no query tokens"):
        drift_map(tuned, chat_tokenizer, bank, empty)
    other = ReferenceBank(
        other_model(base), identify(tiny_model("qwen3"), template_hash(chat_tokenizer))
    )
    with pytest.raises(ReferenceMismatchError, match="structure"):
        drift_map(tuned, chat_tokenizer, other, chats)
    prefixes = ReferenceBank()
    prefixes.add(prefix_request(chats[0]), bank.get([prefix_request(chats[0])])[0])
    assert not drift_map(tuned, chat_tokenizer, prefixes, chats, ["prefix"]).is_zero
    with pytest.raises(ReferenceMismatchError, match="holds no states"):
        drift_map(tuned, chat_tokenizer, prefixes, chats)
    with torch.no_grad():
        tuned.model.layers[1].self_attn.v_proj.weight.fill_(torch.nan)
    with pytest.raises(ReferenceStatesError, match="in the finetuned model"):
        drift_map(tuned, chat_tokenizer, bank, chats)
