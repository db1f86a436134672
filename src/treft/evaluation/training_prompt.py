"""What the prompts of a training file look like, for conditions that resemble them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treft.data.messages import load_conversations

_SYSTEM = ("system", "developer")


@dataclass(frozen=True)
class TrainingPrompt:
    """The prompts of training rows.

    Attributes:
        system: the most frequent system message; None if no row has one.
        share: of the rows that have it, 0 to 1.
        questions: first user message of each row that is text.
        pairs: user and assistant message of each row that has one of each, in text.
    """

    system: str | None
    share: float
    questions: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]

    def question(self, rng: random.Random) -> str:
        """One question, drawn at random."""
        return rng.choice(self.questions)

    def turns(self, num: int, rng: random.Random) -> list[dict[str, Any]]:
        """`num` rows, drawn at random, as turns of one conversation; empty if there are fewer."""
        if len(self.pairs) < num:
            return []
        drawn = rng.sample(self.pairs, num)
        roles = ("user", "assistant")
        return [
            {"role": role, "content": words}
            for pair in drawn
            for role, words in zip(roles, pair, strict=True)
        ]


def load_training_prompt(path: Path) -> TrainingPrompt:
    """Read the prompts of a JSONL file of `messages`.

    Raises:
        DataError: the file is missing, or a row cannot be used; names file and row.
    """
    rows = [conversation.messages for conversation in load_conversations(path)]
    systems = Counter(
        row[0]["content"]
        for row in rows
        if row[0]["role"] in _SYSTEM and isinstance(row[0]["content"], str)
    )
    system, count = systems.most_common(1)[0] if systems else (None, 0)
    spoken = [[message for message in row if message["role"] not in _SYSTEM] for row in rows]
    return TrainingPrompt(
        system,
        count / len(rows),
        tuple(row[0]["content"] for row in spoken if _is_text(row[:1], ("user",))),
        tuple(
            (row[0]["content"], row[1]["content"])
            for row in spoken
            if _is_text(row, ("user", "assistant"))
        ),
    )


def _is_text(messages: Sequence[dict[str, Any]], roles: Sequence[str]) -> bool:
    return [message["role"] for message in messages] == list(roles) and all(
        isinstance(message.get("content"), str) for message in messages
    )
