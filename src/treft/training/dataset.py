"""Annotate dataset rows with regions, and truncate and pack them without losing any.

The annotated dataset has, beside TRL's `input_ids` and `labels`, the columns of
`collator.REGION_COLUMNS`, token by token. Rows are counted from 1 in messages to the user.
"""

from __future__ import annotations

import copy
import json
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import pack_dataset
from trl.data_utils import is_conversational, maybe_convert_to_chatml

from treft.chat.regions import REGION_CODES, ChatRegions, RegionName, find_regions
from treft.core.conversations import Conversation
from treft.data.messages import check_messages
from treft.errors import ConfigError, DataError, TreftError
from treft.training.collator import REGION_COLUMNS
from treft.training.config import TReFTConfig

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
    return find_regions(
        options.tokenizer,
        row_messages(row),
        tools=json.loads(tools) if isinstance(tools, str) else tools,
        chat_template=options.chat_template,
        include_think_block=options.include_think_block,
        template_kwargs=row.get("chat_template_kwargs") or {},
    )


def _map(
    dataset: Any,
    function: Callable[..., dict[str, Any]],
    doing: str,
    options: RegionOptions,
    map_kwargs: dict[str, Any],
    **arguments: Any,
) -> Any:
    """`dataset.map` by rows with their numbers, with a labelled progress bar where there is one."""
    if isinstance(dataset, Dataset):  # a streaming dataset takes no description
        map_kwargs = {**map_kwargs, "desc": f"{doing} {options.dataset_name} dataset"}
    arguments = {"options": options, **arguments}
    return dataset.map(function, with_indices=True, fn_kwargs=arguments, **map_kwargs)


def check_conversations(dataset: Any, options: RegionOptions, **map_kwargs: Any) -> Any:
    """Look at every row before anything is rendered: a template would fail without naming it.

    Raises:
        DataError: the dataset is not conversational, or a row cannot be used; names the row.
    """
    first = maybe_convert_to_chatml(copy.deepcopy(dict(next(iter(dataset)))))
    if not is_conversational(first):
        raise DataError(
            f"the {options.dataset_name} dataset is not conversational, so it has no regions: give "
            "rows with `messages`, or `prompt` and `completion` lists of messages (or set "
            "kv_weight=0 and assistant_only_loss=False)."
        )
    return dataset.map(_check_row, with_indices=True, fn_kwargs={"options": options}, **map_kwargs)


def _check_row(row: Mapping[str, Any], index: int, options: RegionOptions) -> dict[str, Any]:
    row = maybe_convert_to_chatml(copy.deepcopy(dict(row)))  # it renames keys in place
    check_messages(row_messages(row), options.where(index))
    return {}


def row_messages(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The whole conversation of a row with `messages`, or with `prompt` and `completion`."""
    return row["messages"] if "messages" in row else [*row["prompt"], *row["completion"]]


def annotate(dataset: Any, options: RegionOptions, **map_kwargs: Any) -> Any:
    """Add the region columns to a dataset that TRL tokenised (and that still holds the messages).

    Raises:
        TemplateError: a row lacks a held region; names the row.
        DataError: a row's tokens are not those of its messages.
    """
    return _map(dataset, _annotate_row, "Finding regions in", options, map_kwargs)


def _annotate_row(row: Mapping[str, Any], index: int, options: RegionOptions) -> dict[str, Any]:
    try:
        regions = row_regions(row, options)
        for region in options.regions:
            regions.require(cast(RegionName, region))
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
        label if found == code else -100 for label, found in zip(labels, regions.codes, strict=True)
    ]
    if all(label == -100 for label in masked):
        raise DataError(
            f"{where}: assistant_only_loss=True, but no assistant words are left to learn; add an "
            "assistant message with content, or drop the row."
        )
    return masked


def kept_tokens(args: TReFTConfig, packing: bool) -> slice:
    """Which tokens of a row TRL would keep.

    Raises:
        ConfigError: the truncation mode is unknown.
    """
    if args.truncation_mode == "keep_end" and not packing:
        return slice(-cast(int, args.max_length), None)
    if args.truncation_mode not in ("keep_start", "keep_end"):
        raise ConfigError(f"truncation_mode must be keep_start, not {args.truncation_mode!r}.")
    return slice(None, args.max_length)


def truncate(dataset: Any, options: RegionOptions, kept: slice, **map_kwargs: Any) -> Any:
    """Cut every token column to `kept`; a held prompt region must survive whole.

    Raises:
        DataError: a held prompt region would be cut; names the row and the length it needs.
    """
    return _map(dataset, _truncate_row, "Truncating", options, map_kwargs, kept=kept)


def _truncate_row(
    row: Mapping[str, Any], index: int, options: RegionOptions, kept: slice
) -> dict[str, Any]:
    columns = {name: row[name][kept] for name in TOKEN_COLUMNS}
    num_tokens, num_kept = len(row["input_ids"]), len(columns["input_ids"])
    if num_kept == num_tokens:
        return columns
    for region in options.regions:
        lost = _cut_off(row["region_codes"], columns["region_codes"], region)
        if lost and region in PROMPT_REGIONS:
            raise DataError(
                f"{options.where(index)} has {num_tokens} tokens, and cutting it to {num_kept} "
                f"cuts into its {region}, which is to be held: raise max_length to at least "
                f"{num_tokens}, or shorten or drop the row."
            )
    if options.regions:
        logger.warning(
            "%s is truncated from %d to %d tokens; the held prompt regions are whole",
            options.where(index),
            num_tokens,
            num_kept,
        )
    return columns


def _cut_off(codes: Sequence[int], kept: Sequence[int], region: str) -> bool:
    """Whether tokens of the region are gone, or it has become the end of the row."""
    code = REGION_CODES[cast(RegionName, region)]
    if list(codes).count(code) != list(kept).count(code):
        return True
    last = max((index for index, found in enumerate(kept) if found == code), default=-1)
    return not any(kept[last + 1 :])


def refuse_split(dataset: Any, options: RegionOptions, max_length: int, **map_kwargs: Any) -> Any:
    """Packing with "bfd_split" would continue a long row in another one, without its prompt.

    Raises:
        DataError: a row is longer than `max_length`; names it.
    """
    return _map(dataset, _refuse_long_row, "Measuring", options, map_kwargs, max_length=max_length)


def _refuse_long_row(
    row: Mapping[str, Any], index: int, options: RegionOptions, max_length: int
) -> dict[str, Any]:
    num_tokens = len(row["input_ids"])
    if num_tokens > max_length:
        raise DataError(
            f"{options.where(index)} has {num_tokens} tokens; packing_strategy='bfd_split' would "
            f"split it, and its second piece would lack the regions to hold: raise max_length to "
            f"at least {num_tokens}, use packing_strategy='bfd', or drop the row."
        )
    return {}


def has_label(row: Mapping[str, Any]) -> bool:
    """Whether any token of the row is learnt."""
    return any(label != -100 for label in row["labels"])


def pack(dataset: Any, max_length: int, strategy: str, **map_kwargs: Any) -> Any:
    """TRL's packing with the region columns alongside; rows must already fit `max_length`."""
    dataset = dataset.select_columns(list(TOKEN_COLUMNS))
    return pack_dataset(dataset, max_length, strategy, map_kwargs)


def as_conversation(row: Mapping[str, Any]) -> Conversation:
    """An annotated row as the conversation that a batch will hold."""
    return Conversation(
        row=0,
        start=0,
        input_ids=tuple(row["input_ids"]),
        codes=tuple(row["region_codes"]),
        turns=tuple(row["turns"]),
    )


def draw_row(dataset: Any, seed: int) -> Conversation:
    """One row of an annotated dataset, drawn by `seed`; the first one of a streaming dataset."""
    if not isinstance(dataset, Dataset):
        return as_conversation(next(iter(dataset)))
    return as_conversation(dataset[random.Random(seed).randrange(len(dataset))])
