"""Which tokens of a conversation to record as its reference, region by region.

A request says where its states belong by the rotary positions of the kept tokens, so that
`request.positions` are also the places to compare or to patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from treft.chat.regions import REGION_CODES, RegionName
from treft.core.recording import ReferenceRequest
from treft.errors import DataError


class RegionTokens(Protocol):
    """Tokens with their regions: a `ChatRegions`, or a `Document` of a training batch."""

    @property
    def input_ids(self) -> Sequence[int]: ...
    @property
    def codes(self) -> Sequence[int]: ...
    @property
    def turns(self) -> Sequence[int]: ...


PostfixReference = Literal["empty_query", "own_query"] | RegionTokens
"""Where a postfix reference comes from: an empty query, the conversation itself, or one training
row with its regions."""


def region_positions(tokens: RegionTokens, region: RegionName) -> list[int]:
    """Indices of the region's tokens in the conversation."""
    code = REGION_CODES[region]
    return [index for index, found in enumerate(tokens.codes) if found == code]


def region_requests(
    tokens: RegionTokens,
    region: RegionName,
    postfix_reference: PostfixReference = "empty_query",
    first_position: int = 0,
) -> list[ReferenceRequest]:
    """The requests whose states together are the region's reference.

    Args:
        tokens: the conversation.
        region: prefix and postfix have references that other conversations can share; query and
            response are recorded within the conversation itself.
        postfix_reference: see `postfix_requests`.
        first_position: rotary position of the conversation's first token.

    Raises:
        DataError: the conversation has no token of the region.
    """
    if region == "prefix":
        return [prefix_request(tokens, first_position)]
    if region == "postfix":
        return postfix_requests(tokens, postfix_reference, first_position)
    return [own_request(tokens, region_positions(tokens, region), region, first_position)]


def prefix_request(tokens: RegionTokens, first_position: int = 0) -> ReferenceRequest:
    """Everything before the first user words; by causality no other token matters.

    Raises:
        DataError: there is no prefix.
    """
    return own_request(tokens, region_positions(tokens, "prefix"), "prefix", first_position)


def own_request(
    tokens: RegionTokens, positions: Sequence[int], region: str, first_position: int = 0
) -> ReferenceRequest:
    """The conversation itself, run up to the last wanted token.

    Args:
        tokens: the conversation.
        positions: ascending indices of the tokens to keep.
        region: what they are called in the error.
        first_position: rotary position of the conversation's first token.

    Raises:
        DataError: `positions` is empty.
    """
    if not positions:
        raise DataError(f"the conversation has no {region} tokens, so it has no {region} reference")
    end = positions[-1] + 1
    return ReferenceRequest(
        token_ids=tuple(tokens.input_ids[:end]),
        position_ids=tuple(range(first_position, first_position + end)),
        keep=tuple(positions),
    )


def postfix_requests(
    tokens: RegionTokens,
    reference: PostfixReference = "empty_query",
    first_position: int = 0,
) -> list[ReferenceRequest]:
    """The requests for all postfixes of a conversation.

    With its own query there is one request, the conversation itself: its states have read the
    user's words, which a patch would thereby leak. The others are one request per turn, without the
    user's words. With an empty query the prefix is followed at once by the turn's postfix, each at
    the rotary positions it has in the conversation: the query leaves a gap. With a training row,
    that row runs up to the end of its first postfix, all of it shifted so that the two coincide
    (rotary attention depends on differences of positions only).

    Args:
        tokens: the conversation.
        reference: "empty_query", "own_query", or the training row with its regions.
        first_position: rotary position of the conversation's first token.

    Raises:
        DataError: there is no postfix, or the training row's consists of other tokens.
    """
    positions = region_positions(tokens, "postfix")
    if not positions:
        raise DataError("the conversation has no postfix tokens, so it has no postfix reference")
    if reference == "own_query":
        return [own_request(tokens, positions, "postfix", first_position)]
    by_turn: dict[int, list[int]] = {}
    for position in positions:
        by_turn.setdefault(tokens.turns[position], []).append(position)
    if reference == "empty_query":
        return [_empty_query(tokens, turn, first_position) for turn in by_turn.values()]
    return [_training_row(tokens, turn, reference, first_position) for turn in by_turn.values()]


def _empty_query(
    tokens: RegionTokens, positions: Sequence[int], first_position: int
) -> ReferenceRequest:
    indices = [*region_positions(tokens, "prefix"), *positions]
    return ReferenceRequest(
        token_ids=tuple(tokens.input_ids[index] for index in indices),
        position_ids=tuple(first_position + index for index in indices),
        keep=tuple(range(len(indices) - len(positions), len(indices))),
    )


def _training_row(
    tokens: RegionTokens, positions: Sequence[int], row: RegionTokens, first_position: int
) -> ReferenceRequest:
    postfix = region_positions(row, "postfix")
    first_turn = [index for index in postfix if row.turns[index] == row.turns[postfix[0]]]
    wanted = [tokens.input_ids[index] for index in positions]
    if [row.input_ids[index] for index in first_turn] != wanted:
        raise DataError(
            f"the postfix of the chosen reference row differs from tokens {wanted} of this "
            'conversation: choose a row of the same template, or postfix_reference="empty_query".'
        )
    shift = first_position + positions[-1] - first_turn[-1]
    return own_request(row, first_turn, "postfix", shift)
