"""Conversations are found again however a batch lays them out, and cut ones are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conversations import Batch, Conversation, conversation, packed, padded

from treft.core.documents import Document, documents_of_batch, require_region
from treft.errors import DataError

CHATS = [conversation(seed, num_turns=1 + seed % 2) for seed in range(3)]


def as_conversation(found: Document) -> Conversation:
    return Conversation(found.input_ids, found.codes, found.turns)


@pytest.mark.parametrize(
    "lay_out",
    [
        lambda chats: padded(chats, "right", extra=2),
        lambda chats: padded(chats, "left", extra=2),
        packed,
    ],
    ids=["right", "left", "packed"],
)
def test_every_layout_gives_the_conversations_back(
    lay_out: Callable[[list[Conversation]], Batch],
) -> None:
    batch = lay_out(CHATS)
    found = documents_of_batch(*batch.columns)
    assert [as_conversation(document) for document in found] == CHATS
    for document in found:
        end = document.start + len(document.input_ids)
        row = batch.model_inputs["input_ids"][document.row, document.start : end]
        assert tuple(row.tolist()) == document.input_ids
        assert document.first_position == 0


def test_padding_that_no_mask_marks_is_left_out() -> None:
    batch = packed(CHATS[:2])
    inputs = batch.model_inputs
    found = documents_of_batch(
        *(
            torch.nn.functional.pad(t, (0, 3))
            for t in (inputs["input_ids"], batch.codes, batch.turns)
        ),
        position_ids=torch.nn.functional.pad(inputs["position_ids"], (0, 3)),
    )
    assert [as_conversation(document) for document in found] == CHATS[:2]


def test_without_position_ids_the_column_is_the_position() -> None:
    batch = padded(CHATS, "left", extra=1)
    ids, codes, turns, mask, _ = batch.columns
    for document in documents_of_batch(ids, codes, turns, mask):
        assert document.first_position == document.start > 0


def cut(chat: Conversation, start: int, end: int) -> Document:
    span = slice(start, end)
    return Document(3, 0, chat.input_ids[span], chat.codes[span], chat.turns[span])


def test_whole_regions_pass_and_a_truncated_response_too() -> None:
    whole = cut(CHATS[0], 0, len(CHATS[0].codes) - 1)
    for region in ("prefix", "query", "postfix", "response"):
        require_region(whole, region)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("start", "end", "region", "message"),
    [
        (0, 5, "prefix", "ends within its prefix"),
        (0, 6, "query", "no query tokens"),
        (0, 8, "query", "ends within its query"),
        (0, 11, "postfix", "ends within its postfix"),
        (0, 13, "response", "no response tokens"),
        (8, 17, "prefix", "no prefix tokens"),
    ],
)
def test_cut_regions_are_refused_with_row_and_mend(
    start: int, end: int, region: str, message: str
) -> None:
    with pytest.raises(DataError, match=rf"row 3.*{message}.*max_length"):
        require_region(cut(CHATS[0], start, end), region)  # type: ignore[arg-type]


def test_prefix_that_lost_its_start_is_not_whole() -> None:
    chat = Conversation((7, 10, 11, 50, 20, 51), (0, 1, 1, 2, 3, 4), (0,) * 6)
    with pytest.raises(DataError, match="does not start with its prefix"):
        require_region(cut(chat, 0, 6), "prefix")
