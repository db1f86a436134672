"""Run the tokens that all rows of a micro-batch begin with once, with gradient.

Chats of one dataset begin alike: system prompt, tool descriptions, header of the user's turn. A
batch then costs that beginning once and not once a row; loss and gradient are the same up to
rounding. Shapes: B rows, T tokens, N tokens of the shared beginning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import nn

from treft.training.prefix_start import behind, cannot_share, num_shared, why_whole
from treft.training.terms import wants_whole_rows

if TYPE_CHECKING:
    from treft.training import TReFTTrainer


class SharedPrefix:
    """Stands before the model in TRL's loss.

    Args:
        trainer: whose batches are shortened.

    Raises:
        ConfigError: rows must be run whole, or rows would not share the states of their beginning:
            names the reason and the mend.
    """

    def __init__(self, trainer: TReFTTrainer) -> None:
        reason = why_whole(trainer) or _why_unequal(trainer)
        if reason is not None:
            raise cannot_share(reason)
        self._trainer = trainer

    def before(self, model: nn.Module) -> nn.Module:
        """What TRL's loss is to call instead of the model."""

        def run(**inputs: Any) -> Any:
            with self._trainer.accelerator.autocast():
                inputs = shortened(self._trainer.model, inputs)
            return model(**inputs)

        return cast(nn.Module, run)


def shortened(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """A batch from column N on, with the cache of the columns before, whose gradient counts.

    Whole where there are no labels, and where rows share nothing.

    Args:
        model: runs the first N tokens of one row, with gradient; one that keeps all keys and values
            and has no dropout.
        inputs: of the model: `input_ids`, `labels`, `attention_mask`, (B, T).
    """
    input_ids = inputs["input_ids"]
    num = num_shared(inputs) if len(input_ids) > 1 else 0
    if num < 1:
        return inputs
    run = model(input_ids=input_ids[:1, :num], use_cache=True, logits_to_keep=1)
    cache = run.past_key_values
    cache.batch_repeat_interleave(len(input_ids))
    return behind(num, inputs, cache)


def _why_unequal(trainer: TReFTTrainer) -> str | None:
    """Why one row's beginning cannot stand for that of the others."""
    model = trainer.model
    if any(_dropout(module) for module in model.modules()):
        return "dropout draws other zeros for each row: set it to 0 (lora_dropout=0)"
    seeing = [method.name for method in trainer.mitigations if wants_whole_rows(method)]
    if seeing:
        return f"{', '.join(seeing)} changes or reads the forward of whole rows"
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return "the adapter puts tokens of its own before each row"
    return None


def _dropout(module: nn.Module) -> bool:
    """Whether a module drops activations in training, as a layer or in its attention."""
    rates = [module.p] if isinstance(module, nn.Dropout) else []
    rates.append(getattr(module, "attention_dropout", 0.0))
    return any(isinstance(rate, float) and rate > 0 for rate in rates)
