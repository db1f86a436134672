"""Activated LoRA: the adapter is off before an invocation text, so that all before is the base's.

PEFT does the work (`LoraConfig.alora_invocation_tokens`), in training and in use.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import PreTrainedTokenizerBase
from trl import SFTTrainer

from treft.chat.regions import find_regions
from treft.errors import ConfigError, DataError
from treft.training.terms import Mitigation, flag

if TYPE_CHECKING:
    from peft import LoraConfig


@dataclass(eq=False)
class ActivatedLora(Mitigation):
    """The LoRA is on from the last invocation text on; all before it has the base's states.

    Source: activated LoRA (Greenewald et al., arXiv 2504.12397), PEFT's `alora_invocation_tokens`.
    Formula: y_t = W x_t + 1[t ≥ t₀] s B A x_t in every adapted layer, t₀ the first token of the
    last invocation text. With the template's own generation prompt, which is the postfix, prefix
    and query keep the base's keys and values: a harder constraint than `FrozenPrefix`, and one that
    PEFT and vLLM serve by themselves from the base's cache. Nothing is added to the loss. Cost:
    none.

    Responses before the last one of a row are the base's and teach nothing: give single turns.

    Attributes:
        text: The invocation text, with which it begins; default the template's generation prompt.

    Raises:
        ConfigError: something else than a fresh LoRA trains, rows are packed, or the text is empty.
        DataError: a training row lacks the text; names the row.
    """

    name: ClassVar[str] = "activated_lora"
    changes_adapter: ClassVar[bool] = True

    text: str | None = field(default=None, metadata=flag("activated_lora_text", str))

    def __post_init__(self) -> None:
        """Validate."""
        if self.text == "":
            raise ConfigError("activated_lora's text is empty: leave it out, or name the header.")

    def adapter(self, config: LoraConfig | None, tokenizer: PreTrainedTokenizerBase) -> LoraConfig:
        """The adapter that is asked for, as an activated one."""
        from peft import LoraConfig

        if not isinstance(config, LoraConfig):
            raise ConfigError(
                "activated_lora makes an activated LoRA of a fresh one: train a LoRA (use_peft)."
            )
        if self.text is None:
            tokens = generation_prompt(tokenizer)
        else:
            tokens = tokenizer(self.text, add_special_tokens=False).input_ids
        changed = copy.deepcopy(config)
        changed.alora_invocation_tokens = list(tokens)
        changed.task_type = "CAUSAL_LM"  # only that model of PEFT's looks for the tokens
        return changed

    def prepare(self, trainer: SFTTrainer) -> None:
        """Check that every row has the text: the adapter would be off in it without a word."""
        if trainer.args.packing or trainer.padding_free:
            raise ConfigError(
                "activated_lora needs each row by itself, for PEFT looks for the last invocation "
                "of a row: set packing=False and padding_free=False."
            )
        model: Any = trainer.model
        tokens = model.peft_config[model.active_adapter].alora_invocation_tokens
        rows: Any = trainer.train_dataset
        for number, row in enumerate(rows.select_columns(["input_ids"])):
            if not _contains(row["input_ids"], tokens):
                told = trainer.processing_class.decode(tokens)
                raise DataError(
                    f"row {number} of the training set lacks the invocation text {told!r}, so its "
                    "adapter would be off: drop the row, raise max_length, or set another text."
                )


def generation_prompt(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of the template's postfix, with which a response begins."""
    chat = find_regions(tokenizer, [{"role": "user", "content": "x"}], add_generation_prompt=True)
    return [chat.input_ids[position] for position in chat.require("postfix")]


def _contains(tokens: Sequence[int], part: Sequence[int]) -> bool:
    size, wanted = len(part), list(part)
    starts = range(len(tokens) - size, -1, -1)  # it is near the end
    return any(list(tokens[start : start + size]) == wanted for start in starts)
