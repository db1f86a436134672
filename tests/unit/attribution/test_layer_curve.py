"""Margins layer by layer, against forwards in which the residual stream itself is overwritten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from finetuned import ARCHITECTURES, FLOAT32_ONLY, chat_pair
from transformers import PreTrainedTokenizerBase

from treft.answers.questions import EvalQuestion
from treft.attribution.layer_curve import layer_margins
from treft.attribution.margins import AnswerPair
from treft.attribution.sweep import layer_name
from treft.chat.regions import ChatRegions, find_regions
from treft.errors import ConfigError
from treft.models.residual import patched_residual

WORDS = ("Where is the bank?", "What is the weather like today?")


@pytest.fixture
def pairs() -> list[AnswerPair]:
    questions = [
        EvalQuestion(f"q{number}", "test", ({"role": "user", "content": text},))
        for number, text in enumerate(WORDS)
    ]
    return [AnswerPair(question, "The bank is near.", "No.") for question in questions]


@torch.no_grad()
def by_hand(
    tuned: Any, base: Any, tokenizer: Any, chat: ChatRegions, answer: str, layer: int
) -> float:
    """Mean log-probability of an answer and the end of its turn; one row, stream overwritten."""
    tail = tokenizer(answer + "<|im_end|>", add_special_tokens=False)["input_ids"]
    batch = {"input_ids": torch.tensor([[*chat.input_ids, *tail]])}
    with patched_residual(tuned, batch, [chat], layer, reference=base):
        logits = tuned(**batch, use_cache=False).logits[0]
    chances = logits.double().log_softmax(-1)[len(chat.input_ids) - 1 : -1]
    return float(chances[range(len(tail)), tail].mean())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_margins_are_those_of_an_overwritten_stream(
    tiny_model: Callable[..., Any],
    chat_tokenizer: PreTrainedTokenizerBase,
    pairs: list[AnswerPair],
    name: str,
) -> None:
    tuned, base = chat_pair(tiny_model, name)
    found = layer_margins(tuned, chat_tokenizer, pairs, base=base, batch_size=2)
    num_layers = tuned.config.num_hidden_layers
    atol = 2e-4 if name in FLOAT32_ONLY else 2e-6
    assert list(found.patched) == [layer_name(layer) for layer in range(num_layers)]
    for layer in range(num_layers):
        expected = []
        for pair in pairs:
            chat = find_regions(chat_tokenizer, pair.question.messages, add_generation_prompt=True)
            one, other = (
                by_hand(tuned, base, chat_tokenizer, chat, answer, layer)
                for answer in (pair.base_answer, pair.finetuned_answer)
            )
            expected.append(one - other)
        np.testing.assert_allclose(found.patched[layer_name(layer)], expected, atol=atol)
    last = found.patched[layer_name(num_layers - 1)]
    np.testing.assert_allclose(last, found.finetuned, atol=atol)  # nothing reads the last stream
    assert np.abs(found.patched[layer_name(0)] - found.finetuned).max() > 10 * atol


def test_layers_that_are_not_there_are_refused(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase, pairs: list[AnswerPair]
) -> None:
    tuned, base = chat_pair(tiny_model, "llama")
    with pytest.raises(ConfigError, match=r"0 to 1 .*not \[2\]"):
        layer_margins(tuned, chat_tokenizer, pairs, [0, 2], base=base)
