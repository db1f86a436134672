"""What stands in for the model in TRL's loss: terms around it, and fewer tokens to run.

With `share_prefix` the tokens that all rows of a micro-batch begin with (system prompt, tool
descriptions, header of the user's turn) are run once, with gradient, and not once a row. With
`learnt_tokens_only` the output head is run at learnt tokens alone: TRL drops the others before the
head only where Triton is, and on a CPU the head of a short response after a long prompt can cost as
much as the rest of a small model. Loss and gradient are the same up to rounding.
Shapes: B rows, T tokens, D hidden size, M most learnt tokens of a row, N tokens of the beginning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from trl import SFTTrainer

from treft.core.states import pretrained_model
from treft.models.adapters import is_peft
from treft.training.config import TReFTConfig
from treft.training.prefix_start import behind, cannot_share, num_shared, why_whole
from treft.training.terms import LossBatch, Mitigation, wants_whole_rows


class LossForward:
    """Stands in for the model in TRL's loss.

    Args:
        model: what TRL would call.
        batch: the micro-batch.
        mitigations: entered around each forward.
        config: says which tokens need not be run.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: LossBatch,
        mitigations: Sequence[Mitigation],
        config: TReFTConfig,
    ) -> None:
        self._model = model
        self._batch = batch
        self._mitigations = mitigations
        self._config = config

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        trainer = self._batch.trainer
        if self._config.share_prefix:
            with trainer.accelerator.autocast():
                kwargs = shortened(trainer.model, kwargs)
        with ExitStack() as stack:
            for mitigation in self._mitigations:
                stack.enter_context(mitigation.around_forward(self._batch))
                kwargs = mitigation.forward_inputs(self._batch, kwargs)
            if self._config.learnt_tokens_only and kwargs.get("fused_lm_head"):
                kwargs = stack.enter_context(_at_learnt_tokens(self._model, kwargs))
            return self._model(*args, **kwargs)


@contextmanager
def _at_learnt_tokens(model: nn.Module, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Gather the decoder's output and the labels at learnt tokens, before TRL's head and loss."""
    if inputs.get("labels") is None:
        yield inputs
        return
    positions, labels = gather_learnt(inputs["labels"])

    def gather(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = output.last_hidden_state
        index = positions.to(hidden.device)[..., None].expand(-1, -1, hidden.shape[-1])
        output.last_hidden_state = hidden.gather(1, index)
        return output

    handle = pretrained_model(model).get_decoder().register_forward_hook(gather)
    try:
        yield {**inputs, "labels": labels}
    finally:
        handle.remove()


def gather_learnt(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (B, M + 1) whose next token is learnt, first in each row, and labels to match.

    The last position is a spare: TRL shifts labels by one, so label m + 1 belongs to position m.
    Rows with fewer learnt tokens are filled up with position 0, which is not learnt (-100).

    Args:
        labels: (B, T), -100 where a token is not learnt.
    """
    learnt = labels[:, 1:] != -100
    most = int(learnt.sum(1).max())
    order = torch.argsort(learnt.int(), dim=1, descending=True, stable=True)[:, :most]
    taken = learnt.gather(1, order)
    spare = torch.zeros_like(labels[:, :1])
    positions = torch.cat([order * taken, spare], dim=1)
    gathered = labels[:, 1:].gather(1, order).masked_fill(~taken, -100)
    return positions, torch.cat([spare - 100, gathered], dim=1)


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


def check_shared(trainer: SFTTrainer, mitigations: Sequence[Mitigation]) -> None:
    """Refuse `share_prefix` where rows must be run whole, or would not share their states.

    Raises:
        ConfigError: names the reason and the mend.
    """
    reason = why_whole(trainer) or _why_unequal(trainer.model, mitigations)
    if reason is not None:
        raise cannot_share(reason)


def _why_unequal(model: Any, mitigations: Sequence[Mitigation]) -> str | None:
    """Why one row's beginning cannot stand for that of the others."""
    if any(_dropout(module) for module in model.modules()):
        return "dropout draws other zeros for each row: set it to 0 (lora_dropout=0)"
    seeing = [method.name for method in mitigations if wants_whole_rows(method)]
    if seeing:
        return f"{', '.join(seeing)} changes or reads the forward of whole rows"
    if is_peft(model) and model.active_peft_config.is_prompt_learning:
        return "the adapter puts tokens of its own before each row"
    return None


def _dropout(module: nn.Module) -> bool:
    """Whether a module drops activations in training, as a layer or in its attention."""
    rates = [module.p] if isinstance(module, nn.Dropout) else []
    rates.append(getattr(module, "attention_dropout", 0.0))
    return any(isinstance(rate, float) and rate > 0 for rate in rates)
