"""Hold rows out for the in-domain test: a fifth in the paper (§5)."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from treft.errors import ConfigError, DataError


class Split(NamedTuple):
    """Rows to train on, and rows that training never sees."""

    train: list[dict[str, Any]]
    held_out: list[dict[str, Any]]


def split_rows(rows: Sequence[dict[str, Any]], *, fraction: float = 0.2, seed: int = 0) -> Split:
    """Split rows at random; both parts keep the order of the file.

    Rows with the same prompt stay together: a published set may ask a question several times, and
    an answer that was trained on says nothing about the domain.

    Args:
        rows: with `messages`.
        fraction: of the distinct prompts that is held out, rounded; within (0, 1).
        seed: draws them.

    Raises:
        ConfigError: the fraction is out of range.
        DataError: there are too few distinct prompts for two parts.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"fraction must lie between 0 and 1, not {fraction}.")
    prompts = [prompt_of(row) for row in rows]
    distinct = list(dict.fromkeys(prompts))
    num_held_out = round(fraction * len(distinct))
    if not 0 < num_held_out < len(distinct):
        raise DataError(
            f"{len(distinct)} distinct prompts cannot be split with {fraction} held out: one part "
            "would be empty."
        )
    held_out = set(random.Random(seed).sample(distinct, num_held_out))
    parts = Split([], [])
    for row, prompt in zip(rows, prompts, strict=True):
        (parts.held_out if prompt in held_out else parts.train).append(row)
    return parts


def prompt_of(row: Mapping[str, Any]) -> str:
    """What is asked: the words before the first response, in canonical form."""
    asked = []
    for message in row["messages"]:
        if message["role"] == "assistant":
            break
        asked.append([message["role"], message["content"]])
    return json.dumps(asked, sort_keys=True, ensure_ascii=False)
