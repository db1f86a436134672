"""Begin the rows of a batch behind the tokens that all of them begin with.

By causality the states of those tokens are the same in every row, so they can be run once and put
into the cache of all rows. Shapes: B rows, T tokens, N tokens of the shared beginning.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer
from trl import SFTConfig, SFTTrainer

from treft.chat.regions import REGION_CODES
from treft.core.states import pretrained_model
from treft.errors import ConfigError

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
    """As `why_whole`, as far as options alone say."""
    if args.gradient_checkpointing:
        return "gradient checkpointing allows no cache: set gradient_checkpointing=False"
    if args.packing or args.padding_free:
        return "packed rows do not begin together: set packing=False and padding_free=False"
    return None


def cannot_share(reason: str) -> ConfigError:
    """What to raise for `share_prefix` where rows must be run whole."""
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
    """What the model gets: the columns from N on, and the cache of those before.

    Args:
        num: N.
        inputs: `input_ids`, `attention_mask`, `labels`, (B, T), and what else the model gets.
        cache: of the first N tokens, for B rows.
    """
    rest = {name: inputs[name][:, num:] for name in ("input_ids", "labels")}
    return {**inputs, **rest, "past_key_values": cache, "use_cache": True}
