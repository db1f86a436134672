"""Which tokens a reference is recorded from, and where they are placed."""

from __future__ import annotations

import pytest
from conversations import POSTFIX, PREFIX, Conversation, conversation

from treft.core.recording import ReferenceRequest
from treft.core.requests import postfix_requests, prefix_request, region_requests
from treft.errors import ConfigError, DataError


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
