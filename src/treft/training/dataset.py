"""Annotate dataset rows with regions, and truncate and pack them without losing any.

The annotated dataset has, beside TRL's `input_ids` and `labels`, the columns of
`collator.REGION_COLUMNS`, token by token. Rows are counted from 1 in messages to the user.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import pack_dataset
from trl.data_utils import is_conversational

from treft.errors import DataError, TreftError
from treft.regions import REGION_CODES, ChatRegions, find_regions
from treft.training.collator import REGION_COLUMNS

__all__ = ["RegionOptions", "annotate", "column_names", "pack", "row_regions", "truncate"]

logger = logging.getLogger(__name__)

TOKEN_COLUMNS = ("input_ids", "labels", *REGION_COLUMNS)
PROMPT_REGIONS = ("prefix", "query", "postfix")
"""Regions of which no token may be cut off; a response may be shortened, as in plain SFT."""


@dataclass(frozen=True)
class RegionOptions:
    """How regions are found in a row, and which must survive.

    Attributes:
        tokenizer: renders and tokenises the messages.
        chat_template: the template in force; None for the tokenizer's own.
        include_think_block: an empty think block counts as postfix.
        regions: regions that every row must have.
        mask_labels: restrict the labels to the response (assistant-only loss).
        dataset_name: "train" or "eval" or the user's name, for messages.
    """

    tokenizer: PreTrainedTokenizerBase
    chat_template: str | None
    include_think_block: bool
    regions: tuple[str, ...]
    mask_labels: bool
    dataset_name: str

    def where(self, index: int) -> str:
        """How a message names the row at `index` (from 0)."""
        return f"row {index + 1} of the {self.dataset_name} dataset"


def column_names(dataset: Any) -> list[str]:
    """Columns of a map-style or streaming dataset (the latter may not know them beforehand)."""
    names: list[str] | None = dataset.column_names
    return list(next(iter(dataset))) if names is None else names


def row_regions(row: Mapping[str, Any], options: RegionOptions) -> ChatRegions:
    """Regions of a conversational row, rendered the way TRL renders it."""
    tools = row.get("tools")
    messages = row["messages"] if "messages" in row else [*row["prompt"], *row["completion"]]
    return find_regions(
        options.tokenizer,
        messages,
        tools=json.loads(tools) if isinstance(tools, str) else tools,
        chat_template=options.chat_template,
        include_think_block=options.include_think_block,
        template_kwargs=row.get("chat_template_kwargs") or {},
    )


def annotate(dataset: Any, options: RegionOptions, **map_kwargs: Any) -> Any:
    """Add the region columns to a dataset that TRL tokenised (and still holds the messages).

    Raises:
        DataError: the dataset is not conversational, or a row cannot be used; names the row.
    """
    if not is_conversational(next(iter(dataset))):
        raise DataError(
            f"the {options.dataset_name} dataset is not conversational, so it has no regions: give "
            "rows with `messages`, or `prompt` and `completion` lists of messages (or set "
            "kv_weight=0 and assistant_only_loss=False)."
        )
    return dataset.map(
        _annotate_row, with_indices=True, fn_kwargs={"options": options}, **map_kwargs
    )


def _annotate_row(row: Mapping[str, Any], index: int, options: RegionOptions) -> dict[str, Any]:
    try:
        regions = row_regions(row, options)
        for region in options.regions:
            regions.require(region)
    except TreftError as error:
        raise type(error)(f"{options.where(index)}: {error}") from error
    if list(regions.input_ids) != list(row["input_ids"]):
        raise DataError(
            f"{options.where(index)}: its tokens are not those of its messages; drop the row, or "
            "report its chat template."
        )
    columns: dict[str, Any] = {
        "region_codes": list(regions.codes),
        "turns": list(regions.turns),
    }
    if options.mask_labels:
        columns["labels"] = _response_labels(row["labels"], regions, options.where(index))
    return columns


def _response_labels(labels: Sequence[int], regions: ChatRegions, where: str) -> list[int]:
    """`labels` with -100 outside the response region."""
    code = REGION_CODES["response"]
    masked = [
        label if found == code else -100
        for label, found in zip(labels, regions.codes, strict=True)
    ]
    if all(label == -100 for label in masked):
        raise DataError(
            f"{where}: assistant_only_loss=True, but no assistant words are left to learn; add an "
            "assistant message with content, or drop the row."
        )
    return masked


def truncate(
    dataset: Any, options: RegionOptions, kept: slice, *, drop_masked: bool, **map_kwargs: Any
) -> Any:
    """Cut every token column to `kept`; a held prompt region must survive whole.

    Args:
        dataset: annotated rows.
        options: whose `regions` are held.
        kept: slice of the tokens that stay.
        drop_masked: drop rows that are left without any label, as TRL does.
        map_kwargs: for `Dataset.map`.

    Raises:
        DataError: a held prompt region would be cut; names the row and the length it needs.
    """
    dataset = dataset.map(
        _truncate_row,
        with_indices=True,
        fn_kwargs={"options": options, "kept": kept},
        **map_kwargs,
    )
    return dataset.filter(_has_label, **map_kwargs) if drop_masked else dataset


def _has_label(row: Mapping[str, Any]) -> bool:
    return any(label != -100 for label in row["labels"])


def _truncate_row(
    row: Mapping[str, Any], index: int, options: RegionOptions, kept: slice
) -> dict[str, Any]:
    codes = row["region_codes"]
    columns = {name: row[name][kept] for name in TOKEN_COLUMNS}
    for region in options.regions:
        code = REGION_CODES[region]  # type: ignore[index]
        num_tokens, num_kept = codes.count(code), columns["region_codes"].count(code)
        if num_kept == num_tokens:
            continue
        if region in PROMPT_REGIONS or num_kept == 0:
            raise DataError(
                f"{options.where(index)}: truncation to {len(columns['input_ids'])} tokens cuts "
                f"off {num_tokens - num_kept} of its {num_tokens} {region} tokens, which are to "
                f"be held; raise max_length to {len(codes)}, or shorten or drop the row."
            )
        logger.warning(
            "%s: its response is truncated from %d to %d tokens",
            options.where(index),
            num_tokens,
            num_kept,
        )
    return columns


def pack(dataset: Any, max_length: int, strategy: str, **map_kwargs: Any) -> Any:
    """TRL's packing with the region columns alongside; rows must already fit `max_length`."""
    dataset = dataset.select_columns(list(TOKEN_COLUMNS))
    return pack_dataset(dataset, max_length, strategy, map_kwargs)
