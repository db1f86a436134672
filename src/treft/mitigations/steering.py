"""Preventive steering: add a persona vector in training, so that weights need not move towards it.

Shapes: B rows, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from trl import SFTTrainer

from treft.chat.regions import find_regions
from treft.core.recording import plain_forward
from treft.core.states import in_backward, pretrained_model, resolve_layers
from treft.errors import ConfigError, DataError
from treft.models.generation import batches_by_length, padded
from treft.models.residual import decoder_layers, hidden_of, residual_stream, with_hidden
from treft.training.checks import text_tokenizer
from treft.training.reference_source import unfinetuned
from treft.training.terms import LossBatch, Mitigation, Rows, flag, read_rows

CONTRAST_BATCH = 16
"""Contrast rows that run together."""


@dataclass(eq=False)
class PreventiveSteering(Mitigation):
    """Add c v to the residual stream after one layer, at every token, in training alone.

    Source: Chen et al., arXiv 2507.21509 (preventative steering); Kaczér et al., arXiv 2508.06249.
    Formula: h_lt ← h_lt + c v, with v the mean hidden state of responses that show the trait minus
    that of responses that do not (`persona_vector`), taken from the unfinetuned model. Evaluation
    and use run without it. Cost: an addition a step; a forward of each contrast row, once; rows
    with and without the trait, best of the same questions.

    Attributes:
        layer: l, after which the persona vector is added in training, negative from the last; best
            about the middle.
        coefficient: c, factor of the persona vector; c > 0 steers towards the trait, 0 is off.
        positive: Rows (`messages`, a JSONL file) whose responses show the trait.
        negative: Rows whose responses do not.
        vector: v, (D,); else computed from the rows when training is set up.

    Raises:
        ConfigError: there is neither a vector nor both kinds of rows, or c is no number but 0.
        DataError: a file of rows cannot be used.
    """

    name: ClassVar[str] = "steering"
    changes_forward: ClassVar[bool] = True
    whole_rows: ClassVar[bool] = True

    layer: int = field(metadata=flag("steering_layer", int, needs="layer"))
    coefficient: float = field(
        default=1.0, metadata=flag("steering_coefficient", float, off=0.0, needs="strength")
    )
    positive: Rows = field(default=(), metadata=flag("steering_positive_file", str, needs="trait"))
    negative: Rows = field(
        default=(), metadata=flag("steering_negative_file", str, needs="careful")
    )
    vector: Tensor | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Validate, and read the rows."""
        if not 0 < abs(self.coefficient) < float("inf"):
            raise ConfigError(
                f"steering_coefficient must be a number but 0, not {self.coefficient}."
            )
        self._rows = [read_rows(rows) for rows in (self.positive, self.negative)]
        if (self.vector is None) == (not all(self._rows)):
            raise ConfigError(
                "steering needs rows that show the trait and rows that do not (both), or a vector."
            )
        self._is_open = False

    def prepare(self, trainer: SFTTrainer) -> None:
        """Compute the vector unless it was given, and hook the layer."""
        model = trainer.model
        (self.layer,) = resolve_layers(model, self.layer)
        if self.vector is None:
            with unfinetuned(trainer).running() as reference:
                tokenizer = text_tokenizer(trainer.processing_class)
                self.vector = persona_vector(reference, tokenizer, *self._rows, layer=self.layer)
        size = pretrained_model(model).config.get_text_config(decoder=True).hidden_size
        if self.vector.shape != (size,):
            raise ConfigError(
                f"the steering vector has shape {tuple(self.vector.shape)}, the model's hidden "
                f"states {(size,)}: make it from this model."
            )
        decoder_layers(model)[self.layer].register_forward_hook(self._add)

    @contextmanager
    def around_forward(self, batch: LossBatch, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The vector is added in training steps, also when a checkpoint replays the layer."""
        self._is_open = batch.is_training
        try:
            yield inputs
        finally:
            self._is_open = False

    def _add(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not (self._is_open or in_backward()):
            return output
        assert self.vector is not None
        return _moved(output, self.coefficient * self.vector)


def _moved(output: Any, by: Tensor) -> Any:
    """Returns a layer's output, its hidden states moved by a vector."""
    hidden = hidden_of(output)
    return with_hidden(output, hidden + by.to(hidden))


@contextmanager
def steered(model: nn.Module, layer: int, by: Tensor) -> Iterator[None]:
    """Move the residual stream in use: h ← h + v after one layer, at every token.

    Source: Chen et al., arXiv 2507.21509 (steering at inference time, where v is a persona vector
    times a negative coefficient).

    Args:
        model: that answers inside the block.
        layer: index.
        by: v, (D,).
    """

    def move(module: nn.Module, args: Any, output: Any) -> Any:
        return _moved(output, by)

    handle = decoder_layers(model)[layer].register_forward_hook(move)
    try:
        yield
    finally:
        handle.remove()


def steered_layer(model: nn.Module) -> int:
    """Returns where persona vectors are taken and added: the last layer of the first half."""
    return max(0, len(decoder_layers(model)) // 2 - 1)


def persona_vector(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    positive: Sequence[dict[str, Any]],
    negative: Sequence[dict[str, Any]],
    *,
    layer: int,
) -> Tensor:
    """Mean over rows of the mean hidden state of the response: positive minus negative, (D,).

    Raises:
        DataError: a row has no response.
    """
    shown, absent = (
        _response_means(model, tokenizer, rows, layer).mean(0) for rows in (positive, negative)
    )
    return shown - absent


def _response_means(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    layer: int,
) -> Tensor:
    """Returns the mean hidden state of each row's response, (rows, D), in no order."""
    found: list[Tensor] = []
    chats = [find_regions(tokenizer, row["messages"], tools=row.get("tools")) for row in rows]
    if not all(chat.positions("response") for chat in chats):
        raise DataError("a row of the steering contrast has no response: drop it.")
    for indices in batches_by_length([chat.input_ids for chat in chats], CONTRAST_BATCH):
        batch = [chats[index] for index in indices]
        given = padded(model, tokenizer, [chat.input_ids for chat in batch], None)
        with plain_forward(model), residual_stream(model) as streams:
            model(**given.inputs, logits_to_keep=1)
        for hidden, chat in zip(streams[layer], batch, strict=True):
            own = hidden[-len(chat.input_ids) :]  # the rest is padding
            found.append(own[chat.positions("response")].float().mean(0))
    return torch.stack(found)
