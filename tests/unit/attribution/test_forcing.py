"""The control that must change nothing: it holds for every architecture, and it can fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from finetuned import ARCHITECTURES, chat_pair
from transformers import PreTrainedTokenizerBase

from treft.attribution import forcing
from treft.attribution.forcing import check_own_states
from treft.chat.regions import ChatRegions, find_regions
from treft.core.recording import record
from treft.errors import ConfigError

QUESTIONS = ("Where?", "What is the weather like today?", "Is the bank near the river?")
REGIONS: Any = ("prefix", "query", "postfix")


@pytest.fixture
def chats(chat_tokenizer: PreTrainedTokenizerBase) -> list[ChatRegions]:
    return [
        find_regions(
            chat_tokenizer, [{"role": "user", "content": words}], add_generation_prompt=True
        )
        for words in QUESTIONS
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_own_states_change_no_logit(
    tiny_model: Callable[..., Any],
    chat_tokenizer: PreTrainedTokenizerBase,
    chats: list[ChatRegions],
    name: str,
    dtype: torch.dtype,
) -> None:
    tuned, _ = chat_pair(tiny_model, name)
    tuned = tuned.to(dtype).train()
    found = check_own_states(tuned, chat_tokenizer, chats, REGIONS, batch_size=2)
    assert found.is_exact
    assert found.num_prompts == 3
    assert tuned.training
    if dtype == torch.float32:
        assert found.max_difference < 1e-3
        assert found.num_other_tokens == 0


@pytest.mark.parametrize("region", REGIONS)
def test_states_of_another_model_are_noticed(
    tiny_model: Callable[..., Any],
    chat_tokenizer: PreTrainedTokenizerBase,
    chats: list[ChatRegions],
    monkeypatch: pytest.MonkeyPatch,
    region: Any,
) -> None:
    tuned, base = chat_pair(tiny_model, "llama")
    monkeypatch.setattr(forcing, "record", lambda model, requests: record(base, requests))
    with pytest.raises(ConfigError, match="patching cannot be trusted"):
        check_own_states(tuned, chat_tokenizer, chats, [region])
