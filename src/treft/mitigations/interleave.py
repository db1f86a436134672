"""Data interleaving: rows of other domains among the training rows, by seed or perplexity gap."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from treft.chat.regions import REGION_CODES, find_regions
from treft.core.recording import plain_forward
from treft.core.states import pretrained_model
from treft.errors import ConfigError, DataError
from treft.models.loading import LoadOptions, load_model
from treft.training.terms import Mitigation, Rows, Split, flag, read_rows

Row = dict[str, Any]
Score = Callable[[Sequence[Row]], Sequence[float]]
"""The worth of each retain row; the highest are taken first."""


@dataclass(eq=False)
class Interleave(Mitigation):
    """Add rows of retain sets until they are a share of all rows.

    Source: the paper's baseline (§5: 20 % aligned rows of other domains; Table 12: the set,
    Table 14: the ratio); by perplexity gap: Interleaving++ of Kaczér et al., arXiv 2508.06249.
    Formula: to N training rows come r N / (1 − r) retain rows, at places drawn by seed. Sets take
    turns until each is used up, so that domains are balanced; no row comes twice before all have
    come. Cost: no extra forward, but the epoch grows to N / (1 − r) rows (compare at equal
    max_steps), and the retain sets.

    Attributes:
        sources: JSONL files of retain rows to mix in, one for each domain; in Python also rows
            (`messages`) by name.
        ratio: r, share of retain rows among all, below 1; default the paper's. 0 is off.
        seed: Draws and places the rows.
        score: A plain finetune (model or adapter): rows are taken by its `perplexity_gap`, largest
            first; in Python also a score of your own. Default: by seed.
        base: The model before the finetune, where the score is such a folder.

    Raises:
        ConfigError: an argument is out of range, or there is no such folder.
        DataError: a file cannot be used.
    """

    name: ClassVar[str] = "interleave"

    sources: Mapping[str, Rows] | Sequence[str] = field(
        metadata=flag("interleave_files", list[str], needs="sets")
    )
    ratio: float = field(
        default=0.2, metadata=flag("interleave_ratio", float, off=0.0, needs="share")
    )
    seed: int = field(default=42, metadata={"needs": "seed"})
    score: Score | str | None = field(default=None, metadata=flag("interleave_misaligned", str))
    base: str = field(default="", metadata={"needs": "model"})

    def __post_init__(self) -> None:
        """Validate, and read the rows."""
        if not 0 < self.ratio < 1:
            raise ConfigError(f"interleave_ratio must be between 0 and 1, not {self.ratio}.")
        given = self.sources
        sets = given if isinstance(given, Mapping) else dict(zip(given, given, strict=True))
        self._sets = [read_rows(rows) for rows in sets.values()]
        if not self._sets or not all(self._sets):
            raise ConfigError("interleaving needs at least one retain set, and a row in each.")
        if isinstance(self.score, str) and not Path(self.score).exists():
            raise ConfigError(f"interleave_misaligned: there is no folder {self.score}.")

    def rows(self, dataset: Any, split: Split) -> Any:
        """Returns the training rows with retain rows among them; evaluation rows as they are.

        Raises:
            ConfigError: the dataset is streamed.
            DataError: its rows have no `messages`.
        """
        if split != "train":
            return dataset
        if not isinstance(dataset, Dataset):
            raise ConfigError("interleaving needs a dataset of known length, not a streaming one.")
        if "messages" not in dataset.column_names:
            raise DataError(
                "interleaved rows are `messages`, but the training rows have the columns "
                f"{', '.join(dataset.column_names)}: write both as `messages`."
            )
        rng = random.Random(f"interleave/{self.seed}")
        retained = draw(self._ordered(rng), num_retained(len(dataset), self.ratio), rng)
        mixed: list[Row] = list(dataset)
        total = len(mixed) + len(retained)
        for place, row in zip(
            sorted(rng.sample(range(total), len(retained))), retained, strict=True
        ):
            mixed.insert(place, row)
        return Dataset.from_list(mixed, on_mixed_types="use_json")

    def _ordered(self, rng: random.Random) -> list[list[Row]]:
        """Each set's rows in the order in which they are taken."""
        found = []
        for rows in self._sets:
            if self.score is None:
                found.append(rng.sample(rows, len(rows)))
            else:
                worth = self._worth(rows)
                order = sorted(range(len(rows)), key=lambda index: -worth[index])
                found.append([rows[index] for index in order])
        return found

    def _worth(self, rows: Sequence[Row]) -> Sequence[float]:
        if not isinstance(self.score, str):
            assert self.score is not None
            return self.score(rows)
        misaligned, tokenizer = load_model(self.score, None, LoadOptions())
        aligned, _ = load_model(self.base, None, LoadOptions())
        return perplexity_gap(misaligned, aligned, tokenizer, rows)


def num_retained(num_rows: int, ratio: float) -> int:
    """Retain rows that make up `ratio` of all, beside `num_rows` training rows."""
    return round(ratio * num_rows / (1 - ratio))


def draw(sources: Sequence[Sequence[Row]], num: int, rng: random.Random) -> list[Row]:
    """The first `num` rows when sets take turns; each round uses every row once, in a new mix.

    Args:
        sources: each set's rows in order of preference.
        num: of rows.
        rng: shuffles what was drawn, so that sets do not alternate in the training order.
    """
    found: list[Row] = []
    while len(found) < num:
        found.extend(
            row for row, _ in zip(in_turns(sources), range(num - len(found)), strict=False)
        )
    rng.shuffle(found)
    return found


def in_turns(sources: Sequence[Sequence[Row]]) -> Iterator[Row]:
    """A row of each set, then the next of each, until all are used up."""
    for index in range(max(len(rows) for rows in sources)):
        yield from (rows[index] for rows in sources if index < len(rows))


def perplexity_gap(
    misaligned: nn.Module,
    aligned: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
) -> list[float]:
    """Log PPL(response | misaligned) − log PPL(response | aligned) of each row, nats a token.

    Rows with a large gap are those that a plain finetune unlearns; interleaving them is
    Interleaving++ (arXiv 2508.06249). Cost: one forward of both models for each row, once.

    Args:
        misaligned: a plain finetune on the training rows.
        aligned: the model before it.
        tokenizer: of both.
        rows: of `messages`.

    Raises:
        DataError: a row has no response.
    """
    pairs = [response_loss(model, tokenizer, rows) for model in (misaligned, aligned)]
    return [after - before for after, before in zip(*pairs, strict=True)]


def response_loss(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]]
) -> list[float]:
    """Mean negative log-probability of each row's response tokens (nats), one row at a time.

    Raises:
        DataError: a row has no response.
    """
    found = []
    device = pretrained_model(model).device
    with plain_forward(model):
        for number, row in enumerate(rows, start=1):
            chat = find_regions(tokenizer, row["messages"], tools=row.get("tools"))
            is_response = torch.tensor(chat.codes[1:]) == REGION_CODES["response"]
            if not bool(is_response.any()):
                raise DataError(f"retain row {number} has no response to score: drop it.")
            ids = torch.tensor([chat.input_ids], device=device)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1][is_response.to(device)]
            labels = ids[0, 1:][is_response.to(device)]
            found.append(float(nn.functional.cross_entropy(logits.float(), labels)))
    return found
