"""The conversations of a batch, and which of their tokens are recorded as a reference.

A batch may be padded on either side, packed, or flattened; `conversations_of_batch` finds its
conversations again. A region's reference is asked for by `ReferenceRequest`s, which say where the
states belong by the rotary positions of the kept tokens, so that `request.positions` are also the
places to compare or to patch.

Shapes: B rows, T columns (tokens) of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from treft.chat.regions import REGION_CODES, RegionName
from treft.core.recording import ReferenceRequest
from treft.errors import DataError


class RegionTokens(Protocol):
    """Tokens with their regions: a `ChatRegions`, or a `Conversation` of a training batch."""

    @property
    def input_ids(self) -> Sequence[int]: ...
    @property
    def codes(self) -> Sequence[int]: ...
    @property
    def turns(self) -> Sequence[int]: ...


PostfixReference = Literal["empty_query", "own_query"] | RegionTokens
"""Where a postfix reference comes from: an empty query, the conversation itself, or one training
row with its regions."""


@dataclass(frozen=True)
class Conversation:
    """One conversation of a batch.

    Attributes:
        row: its row in the batch.
        start: column of its first token.
        input_ids: its tokens.
        codes: region of each token (`REGION_CODES`, 0 for none).
        turns: user turn of each token.
        first_position: rotary position of its first token.
    """

    row: int
    start: int
    input_ids: tuple[int, ...]
    codes: tuple[int, ...]
    turns: tuple[int, ...]
    first_position: int = 0


def conversations_of_batch(
    input_ids: Tensor,
    codes: Tensor,
    turns: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
) -> list[Conversation]:
    """Split each row where its positions do not count on by one, and at padding.

    Runs of tokens that belong to no region at all (padding of a batch without a mask) are left out.

    Args:
        input_ids: (B, T).
        codes: (B, T), region of each token.
        turns: (B, T), user turn of each token.
        attention_mask: (B, T), 0 at padding; none means no padding.
        position_ids: (B, T) as the model gets them; none means that it counts columns from 0.
    """
    tensors = (input_ids, codes, turns)
    ids_rows, code_rows, turn_rows = (tensor.tolist() for tensor in tensors)
    mask_rows = None if attention_mask is None else attention_mask.tolist()
    position_rows = None if position_ids is None else position_ids.expand_as(input_ids).tolist()
    conversations = []
    for row, ids in enumerate(ids_rows):
        positions = list(range(len(ids))) if position_rows is None else position_rows[row]
        mask = [1] * len(ids) if mask_rows is None else mask_rows[row]
        for start, end in _runs(positions, mask):
            found = Conversation(
                row,
                start,
                tuple(ids[start:end]),
                tuple(code_rows[row][start:end]),
                tuple(turn_rows[row][start:end]),
                positions[start],
            )
            if any(found.codes):
                conversations.append(found)
    return conversations


def require_region(conversation: Conversation, region: RegionName) -> None:
    """Refuse a conversation whose region is missing or was cut by truncation.

    A region is known to be whole when something of the conversation follows it; the response comes
    last and may end early.

    Raises:
        DataError: says which row, and what to do.
    """
    num_tokens = len(conversation.codes)
    where = f"row {conversation.row} of the batch (its conversation of {num_tokens} tokens)"
    mend = (
        "Raise max_length, drop the long rows, or hold another region; truncation_mode and packing "
        "must not cut it off."
    )
    positions = region_positions(conversation, region)
    if not positions:
        raise DataError(
            f"{where} has no {region} tokens: truncated, or not in the template. {mend}"
        )
    is_last = not any(conversation.codes[positions[-1] + 1 :])
    if is_last and region != "response":
        raise DataError(f"{where} ends within its {region}, so it was truncated. {mend}")
    if region == "prefix" and conversation.codes[0] != REGION_CODES["prefix"]:
        raise DataError(f"{where} does not start with its prefix. {mend}")


def _runs(positions: list[int], mask: list[int]) -> Iterator[tuple[int, int]]:
    """Half-open column ranges of the conversations of one row."""
    start = None
    for column, (position, kept) in enumerate(zip(positions, mask, strict=True)):
        continues = start is not None and kept and position == positions[column - 1] + 1
        if continues:
            continue
        if start is not None:
            yield start, column
        start = column if kept else None
    if start is not None:
        yield start, len(positions)


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


def held_requests(
    conversation: Conversation,
    regions: Sequence[RegionName],
    postfix_reference: PostfixReference = "own_query",
) -> dict[ReferenceRequest, bool]:
    """Returns what training needs of a conversation, whose query, response and postfix are one.

    Args:
        conversation: of a training batch.
        regions: that are held.
        postfix_reference: see `postfix_requests`; where the query is held, it is the own one.

    Returns:
        The requests, and of each, whether other conversations may have the same.

    Raises:
        DataError: the conversation lacks a held region.
    """
    for region in regions:
        require_region(conversation, region)
    first = conversation.first_position
    is_own = "query" in regions or postfix_reference == "own_query"
    shared: list[ReferenceRequest] = []
    if "prefix" in regions:
        shared.append(prefix_request(conversation, first))
    if "postfix" in regions and not is_own:
        shared += postfix_requests(conversation, postfix_reference, first)
    found = dict.fromkeys(shared, True)
    names = ("query", "response", *(["postfix"] if is_own else []))
    own = {REGION_CODES[region] for region in regions if region in names}
    if own:
        positions = [index for index, code in enumerate(conversation.codes) if code in own]
        found[own_request(conversation, positions, "held", first)] = False
    return found


def prefix_request(tokens: RegionTokens, first_position: int = 0) -> ReferenceRequest:
    """Everything before the first user words; by causality no other token matters.

    Raises:
        DataError: there is no prefix.
    """
    return own_request(tokens, region_positions(tokens, "prefix"), "prefix", first_position)


def own_request(
    tokens: RegionTokens, positions: Sequence[int], region: str, first_position: int = 0
) -> ReferenceRequest:
    """Returns the conversation itself, run up to the last wanted token.

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
    """Returns the requests for all postfixes of a conversation.

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
