"""Begin a batch behind the prefix that its rows share, from the base's keys and values.

For training in which prefix tokens are the base's: their states then never change, so they are run
once and not in every row of every step.
Shapes: B rows, T tokens, N tokens of the shared prefix.
"""

from __future__ import annotations

from typing import Any

from trl import SFTTrainer

from treft.core.patching import prefix_cache
from treft.core.recording import ReferenceRequest
from treft.core.reference import ReferenceBank
from treft.core.states import pretrained_model
from treft.models.adapters import adapter_off
from treft.training.prefix_start import behind, num_shared, why_whole
from treft.training.terms import LossBatch


class PrefixStart:
    """Takes the shared prefix out of batches.

    Nothing is taken out, and all tokens are run, where rows must be run whole (`why_whole`: sliding
    windows, gradient checkpointing, packed rows, ...), and of a batch whose rows do not begin with
    the same prefix tokens.

    Args:
        trainer: whose fresh adapter leaves the prefix to the base.
    """

    def __init__(self, trainer: SFTTrainer) -> None:
        self._config = pretrained_model(trainer.model).config.get_text_config(decoder=True)
        self._can_start = why_whole(trainer) is None
        self._bank = ReferenceBank(adapter_off(trainer.model))

    def skip(self, batch: LossBatch, inputs: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """N, and what the model gets: the columns from N on, and a cache of those before.

        Args:
            batch: with its regions, (B, T).
            inputs: `input_ids`, `attention_mask`, `labels`, (B, T), and what else the model gets.
        """
        num = num_shared(inputs, batch.regions["region_codes"]) if self._can_start else 0
        if num < 1:
            return 0, inputs
        input_ids = inputs["input_ids"]
        tokens = tuple(input_ids[0, :num].tolist())
        request = ReferenceRequest(tokens, tuple(range(num)), tuple(range(num)))
        [states] = self._bank.get([request])
        return num, behind(num, inputs, prefix_cache(states, self._config, len(input_ids)))
