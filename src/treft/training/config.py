"""TReFTConfig: TRL's `SFTConfig` plus what to hold, how strongly, and against which reference."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from trl import SFTConfig
from trl.trainer.utils import get_config_model_id

from treft.errors import AttentionError, ConfigError

__all__ = ["POSTFIX_REFERENCES", "REGIONS", "STATES", "TReFTConfig", "as_treft_config"]

logger = logging.getLogger(__name__)

REGIONS = ("prefix", "query", "postfix", "response")
STATES = ("both", "key", "value")
POSTFIX_REFERENCES = ("empty_query", "training_row")


@dataclass
class TReFTConfig(SFTConfig):
    """Everything `trl.SFTConfig` takes, unchanged in meaning and default, and the `kv_*` options.

    The trainer minimises L = L_SFT + λ L_KV (eq. 3); `kv_weight` is λ. With `kv_weight=0` nothing
    is captured and training is `trl.SFTTrainer`'s, bit for bit.

    Attributes:
        kv_weight: λ ≥ 0, default 1. The penalty is relative (drift over the reference's norm), so
            1 is its natural unit; sweep {0.3, 1, 3, 10, 30} on held-out questions, because the
            best value depends on model, data and learning rate. The λ printed in the paper belong
            to another quantity (projections without the layer's input norm) and do not carry over.
        kv_regions: regions whose keys and values are held: any of prefix, query, postfix,
            response, or "all". Default prefix.
        kv_states: "both" (default), "key" or "value".
        kv_layers: layer indices that are held; negative ones count from the last. Default all.
        kv_reference: a reference file made by `treft reference record` of the model before this
            finetune. Default: recorded from the model itself (see docs/training.md).
        kv_postfix_reference: "empty_query" (default) records the postfix of the prompt without the
            user's words; "training_row" takes the postfix of one training row, drawn by `seed`.
        kv_include_think_block: count an empty think block that the template writes before the
            response as postfix (default) rather than response.
        kv_log_layers: log the penalty of every layer as `kv_penalty/layer_<index>`.

    Raises:
        ConfigError: an option is unknown, out of range, or cannot work with another one.
        AttentionError: reentrant gradient checkpointing is asked for; captured keys and values
            would have no gradient, without any error.
    """

    _VALID_DICT_FIELDS = SFTConfig._VALID_DICT_FIELDS

    kv_weight: float = field(
        default=1.0,
        metadata={"help": "Weight λ of the key/value penalty; 0 trains exactly as SFTTrainer."},
    )
    kv_regions: list[str] = field(
        default_factory=lambda: ["prefix"],
        metadata={"help": "Regions to hold: prefix, query, postfix, response, or all."},
    )
    kv_states: str = field(
        default="both", metadata={"help": "What to hold.", "choices": list(STATES)}
    )
    kv_layers: list[int] | None = field(
        default=None, metadata={"help": "Layer indices to hold (negative: from the last); all."}
    )
    kv_reference: str | None = field(
        default=None,
        metadata={"help": "Reference file of the model before this finetune; default: recorded."},
    )
    kv_postfix_reference: str = field(
        default="empty_query",
        metadata={
            "help": "Where the postfix reference comes from.",
            "choices": list(POSTFIX_REFERENCES),
        },
    )
    kv_include_think_block: bool = field(
        default=True,
        metadata={"help": "Count an empty think block before the response as postfix."},
    )
    kv_log_layers: bool = field(default=False, metadata={"help": "Log the penalty of every layer."})

    def __post_init__(self) -> None:
        """Validate ours first, so that a wrong option costs nothing, then run SFTConfig's."""
        self.kv_regions = _regions(self.kv_regions)
        self._check_values()
        super().__post_init__()
        if self.kv_weight > 0:
            self._check_set_up()

    def _check_values(self) -> None:
        if not 0 <= self.kv_weight < float("inf"):
            raise ConfigError(f"kv_weight must be a finite number ≥ 0, not {self.kv_weight}.")
        _check_choice("kv_states", self.kv_states, STATES)
        _check_choice("kv_postfix_reference", self.kv_postfix_reference, POSTFIX_REFERENCES)
        if self.kv_layers is not None:
            self.kv_layers = [int(layer) for layer in self.kv_layers]
            if not self.kv_layers:
                raise ConfigError("kv_layers is empty: name at least one layer, or leave it unset.")
        if self.kv_reference is not None and not Path(self.kv_reference).is_file():
            raise ConfigError(
                f"kv_reference: there is no file {self.kv_reference!r}; record one with "
                "`treft reference record`."
            )

    def _check_set_up(self) -> None:
        packing = self.packing or bool(self.eval_packing)
        if packing and self.packing_strategy == "wrapped":
            raise ConfigError(
                "packing_strategy='wrapped' cuts conversations in the middle, so a piece may lack "
                "the region to hold; use packing_strategy='bfd', or kv_weight=0."
            )
        if self.eval_packing and not self.packing:
            raise ConfigError(
                "eval_packing=True without packing=True runs packed conversations as one, so their "
                "regions cannot be told apart; set eval_packing=False, or packing=True."
            )
        kwargs: dict[str, Any] = self.gradient_checkpointing_kwargs or {}
        if self.gradient_checkpointing and kwargs:
            # Other keywords alone would mean torch's default, which is reentrant.
            kwargs.setdefault("use_reentrant", False)
        if self.gradient_checkpointing and kwargs.get("use_reentrant"):
            raise AttentionError(
                "Reentrant gradient checkpointing gives captured keys and values no gradient, so "
                "the penalty would do nothing; set gradient_checkpointing_kwargs="
                "{'use_reentrant': False}, or gradient_checkpointing=False."
            )


def _regions(regions: str | Sequence[str]) -> list[str]:
    """Region names in template order without doubles; a lone name and "all" are spelt out."""
    names = [regions] if isinstance(regions, str) else list(regions)
    names = [part.strip() for name in names for part in str(name).split(",") if part.strip()]
    unknown = [name for name in names if name != "all" and name not in REGIONS]
    if unknown or not names:
        raise ConfigError(
            f"kv_regions must name one or more of {', '.join(REGIONS)}, or all; got {regions!r}."
        )
    return [name for name in REGIONS if name in names or "all" in names]


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")


def as_treft_config(args: TReFTConfig | TrainingArguments | None, model: Any) -> TReFTConfig:
    """The config to train with: another trainer's gets the `kv_*` defaults.

    Args:
        args: what the trainer was given; None for all defaults.
        model: a name or a loaded model, after which the default output folder is called.
    """
    if isinstance(args, TReFTConfig):
        return args
    if args is None:
        name = model if isinstance(model, str) else get_config_model_id(model.config)
        return TReFTConfig(f"{name.split('/')[-1]}-TReFT")
    options = {item.name: getattr(args, item.name) for item in fields(args) if item.init}
    return TReFTConfig(**options)
