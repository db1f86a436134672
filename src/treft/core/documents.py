"""Find the conversations inside a training batch: padded on either side, packed, or flattened.

Shapes: B rows, T columns (tokens) of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from treft.chat.regions import REGION_CODES, RegionName
from treft.core.requests import region_positions
from treft.errors import DataError


@dataclass(frozen=True)
class Document:
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


def documents_of_batch(
    input_ids: Tensor,
    codes: Tensor,
    turns: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
) -> list[Document]:
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
    documents = []
    for row, ids in enumerate(ids_rows):
        positions = list(range(len(ids))) if position_rows is None else position_rows[row]
        mask = [1] * len(ids) if mask_rows is None else mask_rows[row]
        for start, end in _runs(positions, mask):
            found = Document(
                row,
                start,
                tuple(ids[start:end]),
                tuple(code_rows[row][start:end]),
                tuple(turn_rows[row][start:end]),
                positions[start],
            )
            if any(found.codes):
                documents.append(found)
    return documents


def require_region(document: Document, region: RegionName) -> None:
    """Refuse a conversation whose region is missing or was cut by truncation.

    A region is known to be whole when something of the conversation follows it; the response comes
    last and may end early.

    Raises:
        DataError: says which row, and what to do.
    """
    where = f"row {document.row} of the batch (its conversation of {len(document.codes)} tokens)"
    mend = (
        "Raise max_length, drop the long rows, or hold another region; truncation_mode and packing "
        "must not cut it off."
    )
    positions = region_positions(document, region)
    if not positions:
        raise DataError(
            f"{where} has no {region} tokens: truncated, or not in the template. {mend}"
        )
    is_last = not any(document.codes[positions[-1] + 1 :])
    if is_last and region != "response":
        raise DataError(f"{where} ends within its {region}, so it was truncated. {mend}")
    if region == "prefix" and document.codes[0] != REGION_CODES["prefix"]:
        raise DataError(f"{where} does not start with its prefix. {mend}")


def _runs(positions: list[int], mask: list[int]) -> Iterator[tuple[int, int]]:
    """Half-open column ranges of the documents of one row."""
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
