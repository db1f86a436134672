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
from treft.attribution.margins import AnswerPair, margins
from treft.attribution.options import Rendering
from treft.chat.regions import ChatRegions, find_regions
from treft.core.patch_spec import PatchSpec
from treft.models.pair import ModelPair
from treft.models.repair import RepairedModel
from treft.models.residual import ResidualReference, patched_residual, stream_bank

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
    num_layers = tuned.config.num_hidden_layers
    streams = ResidualReference(tuned, base)
    patched = [
        RepairedModel(
            tuned,
            chat_tokenizer,
            stream_bank(tuned, layer, streams),
            PatchSpec(f"stream {layer}", ("prefix",)),
        )
        for layer in range(num_layers)
    ]
    models = ModelPair(tuned, base)
    found = margins(models, chat_tokenizer, pairs, patched, Rendering(batch_size=2))
    atol = 2e-4 if name in FLOAT32_ONLY else 2e-6
    for layer in range(num_layers):
        expected = []
        for pair in pairs:
            chat = find_regions(chat_tokenizer, pair.question.messages, add_generation_prompt=True)
            one, other = (
                by_hand(tuned, base, chat_tokenizer, chat, answer, layer)
                for answer in (pair.base_answer, pair.finetuned_answer)
            )
            expected.append(one - other)
        np.testing.assert_allclose(found.patched[f"stream {layer}"], expected, atol=atol)
    last = found.patched[f"stream {num_layers - 1}"]
    np.testing.assert_allclose(last, found.finetuned, atol=atol)  # nothing reads the last stream
    assert np.abs(found.patched["stream 0"] - found.finetuned).max() > 10 * atol
