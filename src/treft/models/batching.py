"""Conversations to batches of a prompt each, padded on the left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from treft.chat.regions import ChatRegions


def pad_left(
    chats: Sequence[ChatRegions], head: int, pad: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids and mask, (B, T) each, padded on the left but for the first `head` tokens."""
    width = max(len(chat.input_ids) for chat in chats)
    ids, mask = [], []
    for chat in chats:
        num_pads = width - len(chat.input_ids)
        ids.append([*chat.input_ids[:head], *[pad] * num_pads, *chat.input_ids[head:]])
        mask.append([1] * head + [0] * num_pads + [1] * (width - num_pads - head))
    return ids, mask


def batches_by_length(chats: Sequence[ChatRegions], batch_size: int) -> Iterator[list[int]]:
    """Indices of conversations of similar length."""
    order = sorted(range(len(chats)), key=lambda index: len(chats[index].input_ids))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any id does at masked columns."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    return 0
