"""What stands in for the model in TRL's loss: terms around it, and fewer tokens to run.

With `share_prefix` the tokens that all rows of a micro-batch begin with (system prompt, tool
descriptions, header of the user's turn) are run once, with gradient, and not once a row: by
causality their states are the same in every row, so they can be put into the cache of all rows.
With `learnt_tokens_only` the output head is run at learnt tokens alone: TRL drops the others before
the head only where Triton is, and on a CPU the head of a short response after a long prompt can
cost as much as the rest of a small model. Loss and gradient are the same up to rounding.
Shapes: B rows, T tokens, D hidden size, M most learnt tokens of a row, N tokens of the beginning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer
from trl import SFTConfig, SFTTrainer

from treft.chat.regions import REGION_CODES
from treft.core.states import pretrained_model
from treft.errors import ConfigError
from treft.models.adapters import is_peft
from treft.training.terms import LossBatch, Mitigation

WORLDS = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
"""Where the bare model can be run beside its wrapper: weights are whole in each process."""


def why_whole(trainer: SFTTrainer) -> str | None:
    """Why rows must be run whole, and what would mend it; None where they need not be."""
    config = pretrained_model(trainer.model).config.get_text_config(decoder=True)
    layers = DynamicCache(config=config).layers
    if not layers or any(type(layer) is not DynamicLayer for layer in layers):
        return (
            "the model does not keep all keys and values in every layer (sliding windows, linear "
            "attention)"
        )
    if reason := why_options_want_whole(trainer.args):
        return reason
    if trainer.aux_loss_enabled:
        return "the router's auxiliary loss is a mean over all tokens: set router_aux_loss_coef=0"
    if trainer.accelerator.distributed_type not in WORLDS:
        return "weights are sharded over processes: use data parallelism"
    return None


def why_options_want_whole(args: SFTConfig) -> str | None:
    """Returns `why_whole` as far as options alone say."""
    if args.gradient_checkpointing:
        return "gradient checkpointing allows no cache: set gradient_checkpointing=False"
    if args.packing or args.padding_free:
        return "packed rows do not begin together: set packing=False and padding_free=False"
    return None


def cannot_share(reason: str) -> ConfigError:
    """Returns what to raise for `share_prefix` where rows must be run whole."""
    return ConfigError(f"share_prefix cannot work here: {reason}; or leave it off.")


def num_shared(inputs: dict[str, Any], codes: Tensor | None = None) -> int:
    """N: leading columns with the same token in all rows, from which none is learnt.

    0 for rows without labels, or with further tensors (positions of packed rows, images).

    Args:
        inputs: what the model gets: `input_ids`, (B, T); `labels`, (B, T), -100 where a token is
            not learnt; `attention_mask`, (B, T), 0 at padding.
        codes: (B, T), region of each token, to take prefix tokens alone.
    """
    input_ids, labels = inputs["input_ids"], inputs.get("labels")
    tensors = {name for name, value in inputs.items() if isinstance(value, Tensor)}
    if labels is None or tensors - {"input_ids", "labels", "attention_mask"}:
        return 0
    fits = (input_ids == input_ids[:1]) & (labels == -100)
    if inputs.get("attention_mask") is not None:
        fits = fits & (inputs["attention_mask"] != 0)
    if codes is not None:
        fits = fits & (codes == REGION_CODES["prefix"])
    # Column N is predicted from column N - 1; and something must be left to run.
    next_is_free = torch.zeros_like(fits)
    next_is_free[:, :-1] = labels[:, 1:] == -100
    return int((fits & next_is_free).all(0).long().cumprod(0).sum())


def behind(num: int, inputs: dict[str, Any], cache: Cache) -> dict[str, Any]:
    """Returns what the model gets: the columns from N on, and the cache of those before.

    Args:
        num: N.
        inputs: `input_ids`, `attention_mask`, `labels`, (B, T), and what else the model gets.
        cache: of the first N tokens, for B rows.
    """
    rest = {name: inputs[name][:, num:] for name in ("input_ids", "labels")}
    return {**inputs, **rest, "past_key_values": cache, "use_cache": True}


class LossForward:
    """Stands in for the model in TRL's loss.

    Args:
        model: what TRL would call.
        batch: the micro-batch; the trainer's options say which tokens need not be run.
        mitigations: entered around each forward.
    """

    def __init__(
        self, model: nn.Module, batch: LossBatch, mitigations: Sequence[Mitigation]
    ) -> None:
        self._model = model
        self._batch = batch
        self._mitigations = mitigations

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        trainer = self._batch.trainer
        if trainer.args.share_prefix:
            with trainer.accelerator.autocast():
                kwargs = shortened(trainer.model, kwargs)
        with ExitStack() as stack:
            for mitigation in self._mitigations:
                kwargs = stack.enter_context(mitigation.around_forward(self._batch, kwargs))
            if trainer.args.learnt_tokens_only and kwargs.get("fused_lm_head"):
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


def run_batch(model: nn.Module, inputs: dict[str, Any]) -> None:
    """Run one forward of a batch, for what hooks see of it."""
    given = {name: value for name, value in inputs.items() if name not in ("labels", "use_cache")}
    model(**given, use_cache=False, logits_to_keep=1)


def check_shared(trainer: SFTTrainer, mitigations: Sequence[Mitigation]) -> None:
    """Refuse `share_prefix` where rows must be run whole, or would not share their states.

    Raises:
        ConfigError: names the reason and the mend.
    """
    model: Any = trainer.model
    reason = why_whole(trainer)
    if reason is None and any(_dropout(module) for module in model.modules()):
        reason = "dropout draws other zeros for each row: set it to 0 (lora_dropout=0)"
    if reason is None and (seeing := [method.name for method in mitigations if method.whole_rows]):
        reason = f"{', '.join(seeing)} changes or reads the forward of whole rows"
    if reason is None and is_peft(model) and model.active_peft_config.is_prompt_learning:
        reason = "the adapter puts tokens of its own before each row"
    if reason is not None:
        raise cannot_share(reason)


def _dropout(module: nn.Module) -> bool:
    """Returns whether a module drops activations in training, as a layer or in its attention."""
    rates = [module.p] if isinstance(module, nn.Dropout) else []
    rates.append(getattr(module, "attention_dropout", 0.0))
    return any(isinstance(rate, float) and rate > 0 for rate in rates)
