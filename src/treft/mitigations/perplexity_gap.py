"""Which retain rows a misaligned model finds stranger than the aligned one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from treft.chat.regions import REGION_CODES, find_regions
from treft.core.recording import plain_forward
from treft.core.states import pretrained_model
from treft.errors import DataError


def perplexity_gap(
    misaligned: nn.Module,
    aligned: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
) -> list[float]:
    """Log PPL(response | misaligned) − log PPL(response | aligned) of each row, nats a token.

    Rows with a large gap are those that a plain finetune unlearns; interleaving them is
    Interleaving++ (arXiv 2508.06249). Cost: one forward of both models for each row, once.

    Args:
        misaligned: a plain finetune on the training rows.
        aligned: the model before it.
        tokenizer: of both.
        rows: of `messages`.

    Raises:
        DataError: a row has no response.
    """
    pairs = [response_loss(model, tokenizer, rows) for model in (misaligned, aligned)]
    return [after - before for after, before in zip(*pairs, strict=True)]


def response_loss(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]]
) -> list[float]:
    """Mean negative log-probability of each row's response tokens (nats), one row at a time.

    Raises:
        DataError: a row has no response.
    """
    found = []
    device = pretrained_model(model).device
    with plain_forward(model):
        for number, row in enumerate(rows, start=1):
            chat = find_regions(tokenizer, row["messages"], tools=row.get("tools"))
            is_response = torch.tensor(chat.codes[1:]) == REGION_CODES["response"]
            if not bool(is_response.any()):
                raise DataError(f"retain row {number} has no response to score: drop it.")
            ids = torch.tensor([chat.input_ids], device=device)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1][is_response.to(device)]
            labels = ids[0, 1:][is_response.to(device)]
            found.append(float(nn.functional.cross_entropy(logits.float(), labels)))
    return found
