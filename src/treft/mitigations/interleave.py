"""Data interleaving: rows of other domains among the training rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from datasets import Dataset

from treft.errors import ConfigError, DataError
from treft.training.terms import Mitigation, Split

DEFAULT_RATIO = 0.2
"""The paper's."""

Row = dict[str, Any]
Score = Callable[[Sequence[Row]], Sequence[float]]
"""The worth of each retain row; the highest are taken first."""


class Interleave(Mitigation):
    """Add rows of retain sets until they are a share of all rows.

    Source: the paper's baseline (§5: 20 % aligned rows of other domains; Table 12: the set,
    Table 14: the ratio); by perplexity gap: Interleaving++ of Kaczér et al., arXiv 2508.06249.
    Formula: to N training rows come r N / (1 − r) retain rows, at places drawn by seed. Sets take
    turns until each is used up, so that domains are balanced; no row comes twice before all have
    come. Cost: no extra forward, but the epoch grows to N / (1 − r) rows (compare at equal
    max_steps), and the retain sets.

    Args:
        sources: retain rows (`messages`) by name; one set, or one for each domain.
        ratio: r, share of retain rows among all, 0 < r < 1.
        seed: draws and places the rows.
        score: orders each set's rows, highest first, instead of the seed; see `perplexity_gap`.

    Raises:
        ConfigError: an argument is out of range.
    """

    name: ClassVar[str] = "interleave"

    def __init__(
        self,
        sources: Mapping[str, Sequence[Row]],
        ratio: float = DEFAULT_RATIO,
        seed: int = 42,
        score: Score | None = None,
    ) -> None:
        if not 0 < ratio < 1:
            raise ConfigError(f"interleave_ratio must be between 0 and 1, not {ratio}.")
        if not sources or not all(sources.values()):
            raise ConfigError("interleaving needs at least one retain set, and a row in each.")
        self.sources = {name: list(rows) for name, rows in sources.items()}
        self.ratio = ratio
        self.seed = seed
        self.score = score

    def rows(self, dataset: Any, split: Split) -> Any:
        """The training rows with retain rows among them; evaluation rows as they are.

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
        for rows in self.sources.values():
            if self.score is None:
                found.append(rng.sample(rows, len(rows)))
            else:
                worth = self.score(rows)
                order = sorted(range(len(rows)), key=lambda index: -worth[index])
                found.append([rows[index] for index in order])
        return found


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
