"""Conversations are found again however a batch lays them out; what is recorded of them, and where
it is placed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conversations import POSTFIX, PREFIX, Batch, Conversation, conversation, packed, padded

from treft.core.conversations import Conversation as Found
from treft.core.conversations import (
    conversations_of_batch,
    postfix_requests,
    prefix_request,
    region_requests,
    require_region,
)
from treft.core.recording import ReferenceRequest
from treft.errors import ConfigError, DataError

CHATS = [conversation(seed, num_turns=1 + seed % 2) for seed in range(3)]


def as_conversation(found: Found) -> Conversation:
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
    found = conversations_of_batch(*batch.columns)
    assert [as_conversation(one) for one in found] == CHATS
    for one in found:
        end = one.start + len(one.input_ids)
        row = batch.model_inputs["input_ids"][one.row, one.start : end]
        assert tuple(row.tolist()) == one.input_ids
        assert one.first_position == 0


def test_padding_that_no_mask_marks_is_left_out() -> None:
    batch = packed(CHATS[:2])
    inputs = batch.model_inputs
    found = conversations_of_batch(
        *(
            torch.nn.functional.pad(t, (0, 3))
            for t in (inputs["input_ids"], batch.codes, batch.turns)
        ),
        position_ids=torch.nn.functional.pad(inputs["position_ids"], (0, 3)),
    )
    assert [as_conversation(one) for one in found] == CHATS[:2]


def test_without_position_ids_the_column_is_the_position() -> None:
    batch = padded(CHATS, "left", extra=1)
    ids, codes, turns, mask, _ = batch.columns
    for one in conversations_of_batch(ids, codes, turns, mask):
        assert one.first_position == one.start > 0


def cut(chat: Conversation, start: int, end: int) -> Found:
    span = slice(start, end)
    return Found(3, 0, chat.input_ids[span], chat.codes[span], chat.turns[span])


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


def test_prefix_is_the_same_request_whatever_follows() -> None:
    requests = {prefix_request(conversation(seed, num_turns=1 + seed % 2)) for seed in range(4)}
    assert requests == {ReferenceRequest(PREFIX, (0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5))}


def test_positions_start_where_the_conversation_does() -> None:
    request = prefix_request(conversation(0), first_position=7)
    assert request.positions == (7, 8, 9, 10, 11, 12)


def test_empty_query_postfix_holds_no_user_word_and_keeps_its_place() -> None:
    chat = conversation(1, num_turns=2)
    requests = postfix_requests(chat)
    assert len(requests) == 2
    for turn, request in enumerate(requests):
        assert request.token_ids == PREFIX + POSTFIX
        assert request.kept_ids == POSTFIX
        assert [chat.codes[position] for position in request.positions] == [3] * len(POSTFIX)
        assert {chat.turns[position] for position in request.positions} == {turn}
        assert request.position_ids[: len(PREFIX)] == tuple(range(len(PREFIX)))


@pytest.mark.parametrize(("row_seed", "chat_seed"), [(1, 4), (4, 1)])
def test_training_row_is_moved_as_a_whole(row_seed: int, chat_seed: int) -> None:
    row, chat = conversation(row_seed), conversation(chat_seed)
    (request,) = postfix_requests(chat, row)
    num_tokens = len(request.token_ids)
    assert request.token_ids == row.input_ids[:num_tokens]
    assert [row.codes[index] for index in request.keep] == [3] * len(POSTFIX)
    assert [chat.codes[position] for position in request.positions] == [3] * len(POSTFIX)
    first = request.position_ids[0]
    assert request.position_ids == tuple(range(first, first + num_tokens))


def test_training_row_with_another_postfix_is_refused() -> None:
    other = conversation(0)
    changed = Conversation(
        tuple(99 if token == POSTFIX[1] else token for token in other.input_ids),
        other.codes,
        other.turns,
    )
    with pytest.raises(DataError, match="same template"):
        postfix_requests(conversation(1), changed)


def test_query_is_recorded_in_its_own_conversation() -> None:
    chat = conversation(2)
    (request,) = region_requests(chat, "query")
    end = max(request.keep) + 1
    assert request.token_ids == chat.input_ids[:end]
    assert [chat.codes[index] for index in request.keep] == [2] * len(request.keep)
    assert chat.codes.count(2) == len(request.keep)


@pytest.mark.parametrize("region", ["prefix", "query", "postfix", "response"])
def test_missing_region_is_named(region: str) -> None:
    empty = Conversation((5, 6), (0, 0), (0, 0))
    with pytest.raises(DataError, match=region):
        region_requests(empty, region)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("positions", "keep"), [((0, 1), (0,)), ((0, 1, 2), ()), ((0, 1, 2), (3,))]
)
def test_impossible_request_is_refused(positions: tuple[int, ...], keep: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="reference request"):
        ReferenceRequest((5, 6, 7), positions, keep)
