"""Annotate dataset rows with regions, truncate and pack them, and carry regions into the batch.

The annotated dataset has, beside TRL's `input_ids` and `labels`, the columns of `REGION_COLUMNS`,
token by token. Rows are counted from 1 in messages to the user.
Shapes: B batch rows, T tokens of the padded (or flattened) batch.
"""

from __future__ import annotations

import copy
import json
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl import pack_dataset
from trl.data_utils import is_conversational, maybe_convert_to_chatml
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from treft.chat.regions import REGION_CODES, ChatRegions, RegionName, find_regions
from treft.core.conversations import Conversation
from treft.data.messages import check_messages
from treft.errors import ConfigError, DataError, TreftError
from treft.training.config import TReFTConfig

logger = logging.getLogger(__name__)

REGION_COLUMNS = ("region_codes", "turns")
"""Dataset columns beside `input_ids`; the trainer takes them out before the model is called."""
TOKEN_COLUMNS = ("input_ids", "labels", *REGION_COLUMNS)
PROMPT_REGIONS = ("prefix", "query", "postfix")
"""Regions of which no token may be cut off; a response may be shortened, as in plain SFT."""

Examples = Sequence[Mapping[str, Any]]


class RegionCollator(DataCollatorForLanguageModeling):
    """TRL's collator for language modelling; its batch also has the region columns, (B, T)."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Batch `examples`; padding has code 0 (no region) and turn 0."""
        return attach_regions(super().torch_call(examples), examples)


class WrappedCollator:
    """A user's own collator that never sees the region columns, which are added to its batch."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Batch `examples` with the user's collator and add the region columns."""
        bare = [
            {name: value for name, value in example.items() if name not in REGION_COLUMNS}
            for example in examples
        ]
        return attach_regions(self.collate(bare), examples)


def carry_regions(collator: Any) -> RegionCollator | WrappedCollator:
    """`collator` with the region columns in its batches: TRL's own, or a user's wrapped."""
    if type(collator) is DataCollatorForLanguageModeling:
        return RegionCollator(**vars(collator))
    return WrappedCollator(collator)


def attach_regions(batch: dict[str, Any], examples: Examples) -> dict[str, Any]:
    """Add `region_codes` and `turns`, (B, T), to a collated batch, whichever side it is padded.

    Args:
        batch: `input_ids` (B, T), with `attention_mask` (B, T) or flattened to one row without it.
        examples: the rows it was made of, in order; left alone when they carry no regions.

    Raises:
        ConfigError: the batch does not hold the rows' tokens one to one.
    """
    if not all(name in example for example in examples for name in REGION_COLUMNS):
        return batch
    places = _places(batch, examples)
    for name in REGION_COLUMNS:
        column = torch.zeros_like(batch["input_ids"])
        column[places] = torch.cat([torch.as_tensor(example[name]) for example in examples])
        batch[name] = column
    return batch


def _places(batch: dict[str, Any], examples: Examples) -> Tensor:
    """Mask (B, T) of the tokens that came from `examples`, in their order when read row by row."""
    lengths = torch.tensor([len(example["region_codes"]) for example in examples])
    mask: Tensor | None = batch.get("attention_mask")
    if mask is None:
        places = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        places.view(-1)[: int(lengths.sum())] = True
        matches = places.shape[0] == 1 and int(places.sum()) == int(lengths.sum())
    else:
        places = mask.bool()
        matches = len(lengths) == len(places) and bool((places.sum(dim=1) == lengths).all())
    if not matches:
        raise ConfigError(
            "the data collator changes the number of tokens of a row, so the regions to hold can "
            "no longer be placed: use a collator that only pads, or the trainer's own."
        )
    return places


def column_names(dataset: Any) -> list[str]:
    """Columns of a map-style or streaming dataset (the latter may not know them beforehand)."""
    names: list[str] | None = dataset.column_names
    return list(next(iter(dataset))) if names is None else names


def row_messages(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The whole conversation of a row with `messages`, or with `prompt` and `completion`."""
    return row["messages"] if "messages" in row else [*row["prompt"], *row["completion"]]


@dataclass(frozen=True)
class Annotator:
    """Finds the regions of a dataset's rows, and keeps those that must survive.

    Attributes:
        tokenizer: renders and tokenises the messages.
        chat_template: the template in force; None for the tokenizer's own.
        include_think_block: an empty think block counts as postfix.
        regions: regions that every row must have.
        mask_labels: restrict the labels to the response (assistant-only loss).
        dataset_name: "train" or "eval" or the user's name, for messages.
        num_proc: processes that go through a dataset.
    """

    tokenizer: PreTrainedTokenizerBase
    chat_template: str | None
    include_think_block: bool
    regions: Sequence[RegionName]
    mask_labels: bool
    dataset_name: str
    num_proc: int | None

    def _where(self, index: int) -> str:
        """Returns how a message names the row at `index` (from 0)."""
        return f"row {index + 1} of the {self.dataset_name} dataset"

    def _map(self, dataset: Any, function: Callable[..., Any], doing: str, **told: Any) -> Any:
        """`dataset.map` by rows with their numbers; a streaming dataset has no bar to label."""
        shown = {"num_proc": self.num_proc, "desc": f"{doing} {self.dataset_name} dataset"}
        shown = shown if isinstance(dataset, Dataset) else {}
        return dataset.map(function, with_indices=True, fn_kwargs=told, **shown)

    def check(self, dataset: Any) -> Any:
        """Look at every row before anything is rendered: a template would fail without naming it.

        Raises:
            DataError: the dataset is not conversational, or a row cannot be used; names the row.
        """
        first = maybe_convert_to_chatml(copy.deepcopy(dict(next(iter(dataset)))))
        if not is_conversational(first):
            raise DataError(
                f"the {self.dataset_name} dataset is not conversational, so it has no regions: "
                "give rows with `messages`, or `prompt` and `completion` lists of messages (or set "
                "kv_weight=0 and assistant_only_loss=False)."
            )
        return self._map(dataset, self._check_row, "Checking")

    def _check_row(self, row: Mapping[str, Any], index: int) -> dict[str, Any]:
        row = maybe_convert_to_chatml(copy.deepcopy(dict(row)))  # it renames keys in place
        check_messages(row_messages(row), self._where(index))
        return {}

    def annotate(self, dataset: Any) -> Any:
        """Add the region columns to a dataset that TRL tokenised and that still has its messages.

        Raises:
            TemplateError: a row lacks a held region; names the row.
            DataError: a row's tokens are not those of its messages.
        """
        return self._map(dataset, self._annotate_row, "Finding regions in")

    def _annotate_row(self, row: Mapping[str, Any], index: int) -> dict[str, Any]:
        where, tools = self._where(index), row.get("tools")
        try:
            found = find_regions(  # rendered the way TRL renders it
                self.tokenizer,
                row_messages(row),
                tools=json.loads(tools) if isinstance(tools, str) else tools,
                chat_template=self.chat_template,
                include_think_block=self.include_think_block,
                template_kwargs=row.get("chat_template_kwargs") or {},
            )
            for region in self.regions:
                found.require(region)
        except TreftError as error:
            raise type(error)(f"{where}: {error}") from error
        if list(found.input_ids) != list(row["input_ids"]):
            raise DataError(
                f"{where}: its tokens are not those of its messages; drop the row, or report its "
                "chat template."
            )
        columns: dict[str, Any] = {"region_codes": list(found.codes), "turns": list(found.turns)}
        if self.mask_labels:
            columns["labels"] = _response_labels(row["labels"], found, where)
        return columns

    def fit(self, dataset: Any, args: TReFTConfig, packing: bool) -> Any:
        """Cut rows to the length that TRL would keep; a held prompt region must survive whole.

        Packing with "bfd_split" would continue a long row in another one, without its prompt.

        Raises:
            ConfigError: the truncation mode is unknown, or packed rows have no length.
            DataError: a held prompt region would be cut, or a row be split; names the row and the
                length it needs.
        """
        length = args.max_length
        if packing and length is None:
            raise ConfigError("packing needs max_length, the number of tokens of a packed row.")
        if packing and args.packing_strategy == "bfd_split" and self.regions:
            return self._map(dataset, self._refuse_long_row, "Measuring", max_length=length)
        if length is None or (packing and not self.regions):
            return dataset
        if args.truncation_mode not in ("keep_start", "keep_end"):
            raise ConfigError(f"truncation_mode must be keep_start, not {args.truncation_mode!r}.")
        cuts_start = args.truncation_mode == "keep_end" and not packing
        kept = slice(-length, None) if cuts_start else slice(None, length)
        dataset = self._map(dataset, self._truncate_row, "Truncating", kept=kept)
        shown = {"num_proc": self.num_proc} if isinstance(dataset, Dataset) else {}
        return dataset if packing else dataset.filter(has_label, **shown)

    def _truncate_row(self, row: Mapping[str, Any], index: int, kept: slice) -> dict[str, Any]:
        columns = {name: row[name][kept] for name in TOKEN_COLUMNS}
        num_tokens, num_kept = len(row["input_ids"]), len(columns["input_ids"])
        if num_kept == num_tokens:
            return columns
        for region in self.regions:
            lost = _cut_off(row["region_codes"], columns["region_codes"], region)
            if lost and region in PROMPT_REGIONS:
                raise DataError(
                    f"{self._where(index)} has {num_tokens} tokens, and cutting it to {num_kept} "
                    f"cuts into its {region}, which is to be held: raise max_length to at least "
                    f"{num_tokens}, or shorten or drop the row."
                )
        if self.regions:
            logger.warning(
                "%s is truncated from %d to %d tokens; the held prompt regions are whole",
                self._where(index),
                num_tokens,
                num_kept,
            )
        return columns

    def _refuse_long_row(
        self, row: Mapping[str, Any], index: int, max_length: int
    ) -> dict[str, Any]:
        num_tokens = len(row["input_ids"])
        if num_tokens > max_length:
            raise DataError(
                f"{self._where(index)} has {num_tokens} tokens; packing_strategy='bfd_split' would "
                f"split it, and its second piece would lack the regions to hold: raise max_length "
                f"to at least {num_tokens}, use packing_strategy='bfd', or drop the row."
            )
        return {}

    def shuffle(self, dataset: Any, args: TReFTConfig) -> Any:
        """Shuffle, if that is asked for."""
        return dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset

    def pack(self, dataset: Any, args: TReFTConfig) -> Any:
        """TRL's packing with the region columns alongside, shuffled before and after as there."""
        shown = {"num_proc": self.num_proc} if isinstance(dataset, Dataset) else {}
        dataset = self.shuffle(dataset, args).select_columns(list(TOKEN_COLUMNS))
        dataset = pack_dataset(dataset, args.max_length, args.packing_strategy, shown)
        return self.shuffle(dataset, args)


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


def _cut_off(codes: Sequence[int], kept: Sequence[int], region: RegionName) -> bool:
    """Returns whether tokens of the region are gone, or it has become the end of the row."""
    code = REGION_CODES[region]
    if list(codes).count(code) != list(kept).count(code):
        return True
    last = max((index for index, found in enumerate(kept) if found == code), default=-1)
    return not any(kept[last + 1 :])


def has_label(row: Mapping[str, Any]) -> bool:
    """Returns whether any token of the row is learnt."""
    return any(label != -100 for label in row["labels"])


def as_conversation(row: Mapping[str, Any]) -> Conversation:
    """Returns an annotated row as the conversation that a batch will hold."""
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
