"""Hand-made conversations as plain token lists, and batches of them, for tests without a tokenizer.

Token ids mean nothing; what matters is that conversations share prefix and postfix tokens while
their user words and responses differ in content and length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PREFIX = (10, 11, 12, 13, 14, 15)
OTHER_PREFIX = (10, 11, 40, 41, 42, 12, 13, 14, 15)
POSTFIX = (20, 21, 22, 23)
BETWEEN_TURNS = (24, 25, 26)


@dataclass(frozen=True)
class Conversation:
    """Tokens with region codes and turns, as `ChatRegions` has them."""

    input_ids: tuple[int, ...]
    codes: tuple[int, ...]
    turns: tuple[int, ...]


def conversation(
    seed: int, prefix: Sequence[int] = PREFIX, num_turns: int = 1, num_query: int | None = None
) -> Conversation:
    """A conversation whose words and lengths depend on `seed`."""
    generator = torch.Generator().manual_seed(seed)
    ids, codes, turns = list(prefix), [1] * len(prefix), [0] * len(prefix)

    def extend(tokens: Sequence[int], code: int, turn: int) -> None:
        ids.extend(tokens)
        codes.extend([code] * len(tokens))
        turns.extend([turn] * len(tokens))

    def words(num: int) -> list[int]:
        return torch.randint(50, 300, (num,), generator=generator).tolist()

    for turn in range(num_turns):
        if turn:
            extend(BETWEEN_TURNS, 0, turn)
        extend(words(num_query or 3 + seed % 5 + turn), 2, turn)
        extend(POSTFIX, 3, turn)
        extend(words(4 + seed % 3), 4, turn)
    return Conversation(tuple(ids), tuple(codes), tuple(turns))


@dataclass(frozen=True)
class Batch:
    """What a model gets, and what `conversations_of_batch` gets."""

    model_inputs: dict[str, Tensor]
    codes: Tensor
    turns: Tensor

    @property
    def columns(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """Arguments of `conversations_of_batch`."""
        inputs = self.model_inputs
        return (
            inputs["input_ids"],
            self.codes,
            self.turns,
            inputs.get("attention_mask"),
            inputs.get("position_ids"),
        )


def padded(conversations: Sequence[Conversation], side: str = "right", extra: int = 0) -> Batch:
    """One conversation a row, padded to the longest plus `extra`, positions counted by the mask."""
    width = max(len(found.input_ids) for found in conversations) + extra

    def fill(values: Sequence[int]) -> list[int]:
        pads = [0] * (width - len(values))
        return [*values, *pads] if side == "right" else [*pads, *values]

    mask = torch.tensor([fill([1] * len(found.input_ids)) for found in conversations])
    return Batch(
        {
            "input_ids": torch.tensor([fill(found.input_ids) for found in conversations]),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
        },
        torch.tensor([fill(found.codes) for found in conversations]),
        torch.tensor([fill(found.turns) for found in conversations]),
    )


def packed(conversations: Sequence[Conversation]) -> Batch:
    """All conversations in one row without padding; positions start anew at each."""
    positions = [index for found in conversations for index in range(len(found.input_ids))]
    return Batch(
        {
            "input_ids": torch.tensor([[i for found in conversations for i in found.input_ids]]),
            "position_ids": torch.tensor([positions]),
        },
        torch.tensor([[code for found in conversations for code in found.codes]]),
        torch.tensor([[turn for found in conversations for turn in found.turns]]),
    )
