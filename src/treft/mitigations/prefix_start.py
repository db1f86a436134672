"""Begin a batch behind the prefix that its rows share, from the base's keys and values.

For training in which prefix tokens are the base's: their states then never change, so they are run
once and not in every row of every step.
Shapes: B rows, T tokens, N tokens of the shared prefix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from treft.patching import prefix_cache
from treft.recording import ReferenceRequest, adapter_off
from treft.reference import ReferenceBank
from treft.regions import REGION_CODES
from treft.states import pretrained_model
from treft.training.mitigation import LossBatch

if TYPE_CHECKING:
    from treft.training import TReFTTrainer

__all__ = ["PrefixStart", "num_shared"]

WORLDS = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
"""Where the bare model can be run beside its wrapper: weights are whole in each process."""


class PrefixStart:
    """Takes the shared prefix out of batches.

    Nothing is taken out, and all tokens are run, where a model has no plain key/value cache in
    every layer (sliding windows, linear attention), with gradient checkpointing (Transformers then
    uses no cache), sharded weights, a router's auxiliary loss (it is a mean over the tokens that
    are run), or packed rows; and of a batch whose rows do not begin with the same prefix tokens.

    Args:
        trainer: whose fresh adapter leaves the prefix to the base.
    """

    def __init__(self, trainer: TReFTTrainer) -> None:
        pretrained = pretrained_model(trainer.model)
        self._config = pretrained.config.get_text_config(decoder=True)
        layers = DynamicCache(config=self._config).layers
        self._can_start = (
            bool(layers)
            and all(type(layer) is DynamicLayer for layer in layers)
            and not trainer.args.gradient_checkpointing
            and not trainer.aux_loss_enabled
            and trainer.accelerator.distributed_type in WORLDS
        )
        self._bank = ReferenceBank(adapter_off(trainer.model))

    def skip(self, batch: LossBatch, inputs: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """N, and what the model gets: the columns from N on, and a cache of those before.

        Args:
            batch: with its regions, (B, T).
            inputs: `input_ids`, `attention_mask`, `labels`, (B, T), and what else the model gets.
        """
        if not self._can_start or "position_ids" in inputs or "labels" not in inputs:
            return 0, inputs
        input_ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        codes = batch.regions["region_codes"]
        num = num_shared(input_ids, codes, inputs["labels"], mask)
        if num < 1:
            return 0, inputs
        tokens = tuple(input_ids[0, :num].tolist())
        request = ReferenceRequest(tokens, tuple(range(num)), tuple(range(num)))
        [states] = self._bank.get([request])
        rest = {name: inputs[name][:, num:] for name in ("input_ids", "labels")}
        cache = prefix_cache(states, self._config, len(input_ids))
        return num, {**inputs, **rest, "past_key_values": cache, "use_cache": True}


def num_shared(input_ids: Tensor, codes: Tensor, labels: Tensor, mask: Tensor | None) -> int:
    """N: leading columns of the same prefix tokens in all rows, from which none is learnt.

    Args:
        input_ids: (B, T).
        codes: (B, T), region of each token.
        labels: (B, T), -100 where a token is not learnt; column N is predicted from column N - 1,
            so it is not learnt either.
        mask: (B, T), 0 at padding; None for no padding.
    """
    fits = (input_ids == input_ids[:1]) & (codes == REGION_CODES["prefix"])
    if mask is not None:
        fits = fits & (mask != 0)
    next_is_free = torch.ones_like(fits)
    next_is_free[:, :-1] = labels[:, 1:] == -100
    fits = (fits & (labels == -100) & next_is_free).all(0)
    return int(fits.long().cumprod(0).sum())
