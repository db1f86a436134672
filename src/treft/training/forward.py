"""Around the model's forward in TRL's loss: capture its keys and values, find its conversations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from treft.core.conversations import Conversation, conversations_of_batch
from treft.core.regularizer import KVRegularizer


class FirstForward:
    """Stands in for the model in TRL's loss and captures its first forward, the one with gradient.

    TRL may run the model again for logits or metrics; those forwards do not count. Of the first,
    only the held tokens of the batch's conversations are kept.
    """

    def __init__(
        self, model: nn.Module, regularizer: KVRegularizer, conversations: Sequence[Conversation]
    ) -> None:
        self._model = model
        self._regularizer = regularizer
        self._conversations = conversations
        self._is_first = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._is_first:
            return self._model(*args, **kwargs)
        self._is_first = False
        with self._regularizer.capture(self._conversations):
            return self._model(*args, **kwargs)


def batch_conversations(batch: dict[str, Any], regions: dict[str, Any]) -> list[Conversation]:
    """The conversations of a batch.

    Args:
        batch: what the model gets, (B, T) tensors.
        regions: the region columns, (B, T) each.
    """
    return conversations_of_batch(
        batch["input_ids"],
        regions["region_codes"],
        regions["turns"],
        batch.get("attention_mask"),
        batch.get("position_ids"),
    )
