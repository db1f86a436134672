"""TReFTConfig: TRL's `SFTConfig` plus what to hold, how strongly, and against which reference."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast, get_args

from transformers import TrainingArguments
from trl import SFTConfig
from trl.trainer.utils import get_config_model_id

from treft.chat.regions import REGION_CODES, RegionName
from treft.core.regularizer import check_region_weights
from treft.docstrings import with_help
from treft.errors import AttentionError, ConfigError
from treft.training.auto_weight import AutoWeight
from treft.training.forward import cannot_share, why_options_want_whole

logger = logging.getLogger(__name__)

REGIONS = tuple(REGION_CODES)
States = Literal["both", "key", "value"]
PostfixSource = Literal["own_query", "empty_query", "training_row"]
AUTO = "auto"
DEFAULT_START = 100.0
"""Strict at first: what drifts in the first steps can spread a behaviour for good, and λ sinks by
itself where that is more than the budget asks for (docs/training.md)."""
DEFAULT_BUDGET = 0.01
"""L_K + L_V averaged over layers: keys and values each move by 7 % of their length."""


@with_help
@dataclass
class TReFTConfig(SFTConfig):
    """Everything `trl.SFTConfig` takes, unchanged in meaning and default, and the `kv_*` options.

    The trainer minimises L = L_SFT + λ L_KV (eq. 3); `kv_weight` is λ. With `kv_weight=0` nothing
    is captured and training is `trl.SFTTrainer`'s, bit for bit.

    Attributes:
        kv_weight: λ ≥ 0, default 1; with 0 training is SFTTrainer's. The penalty is relative (drift
            over the reference's norm), so 1 is its natural unit; sweep {0.3, 1, 3, 10, 30} on
            held-out questions, because the best value depends on model, data and learning rate.
            The λ printed in the paper belong to another quantity (projections without the layer's
            input norm) and do not carry over. "auto" steers λ so that `kv_budget` is held.
        kv_budget: With kv_weight "auto", the L_KV to hold, averaged over about ten steps. Default
            0.01.
        kv_weight_start: With kv_weight "auto", λ of the first step. Default 100: strict first, then
            as loose as the budget allows.
        kv_regions: Regions whose keys and values are held: any of prefix, query, postfix,
            response, or "all". Default prefix.
        kv_region_weights: w_r of each held region, {"prefix": 1.0, "postfix": 0.3} or JSON; the
            penalty is Σ_r w_r L_KV(r), each region's mean over its own tokens. Default: one mean
            over the tokens of all held regions.
        kv_states: What is held: "both" (default), "key" or "value".
        kv_layers: Layer indices that are held; negative ones count from the last. Default all.
        kv_reference: A reference file made by `treft reference record` of the model before this
            finetune. Default: recorded from the model itself (see docs/training.md).
        kv_postfix_reference: "own_query" (default) is eq. (2) as it stands: the postfix of each row
            as the unfinetuned model reads it, one more forward a row and step; "empty_query"
            the postfix of the prompt without the user's words; "training_row" that of one training
            row, drawn by `seed` (Table 4). The last two ask a postfix to forget its query.
        kv_include_think_block: Count an empty think block that the template writes before the
            response as postfix (default) rather than response.
        kv_log_layers: Log the penalty of every layer as `kv_penalty/layer_<index>`.
        learnt_tokens_only: Run the output head at learnt tokens alone. TRL does so on a GPU and
            runs it at all tokens elsewhere; the loss is the same up to rounding, and a step on a
            CPU can be much cheaper. Default off: bit for bit TRL's.
        share_prefix: Run the tokens that all rows of a micro-batch begin with (the prefix of one
            system prompt) once, with gradient, and not once a row; loss and gradient are the same
            up to rounding. It needs a model with full attention, no dropout, and neither gradient
            checkpointing (TRL's default) nor packing. Default off: bit for bit TRL's.

    Raises:
        ConfigError: an option is unknown, out of range, or cannot work with another one.
        AttentionError: reentrant gradient checkpointing is asked for; captured keys and values
            would have no gradient, without any error.
    """

    _VALID_DICT_FIELDS = [*SFTConfig._VALID_DICT_FIELDS, "kv_region_weights"]  # noqa: RUF012

    # None is no value of it: only with it does transformers' parser leave the text to us.
    kv_weight: float | str | None = 1.0
    kv_budget: float | None = None
    kv_weight_start: float | None = None
    kv_regions: list[str] = field(default_factory=lambda: ["prefix"])
    kv_region_weights: dict[str, Any] | str | None = None
    kv_states: States = "both"
    kv_layers: list[int] | None = None
    kv_reference: str | None = None
    kv_postfix_reference: PostfixSource = "own_query"
    kv_include_think_block: bool = True
    kv_log_layers: bool = False
    learnt_tokens_only: bool = False
    share_prefix: bool = False

    def __post_init__(self) -> None:
        """Validate ours first, so that a wrong option costs nothing, then run SFTConfig's."""
        self.kv_regions = _regions(self.kv_regions)
        self.kv_weight = _weight(self.kv_weight)
        self.kv_region_weights = _region_weights(self.kv_region_weights, self.kv_regions)
        self._check_auto()
        self._check_values()
        self._check_reference()
        super().__post_init__()
        if self.holds:
            self._check_set_up()
        if self.share_prefix and (reason := why_options_want_whole(self)):
            raise cannot_share(reason)

    @property
    def holds(self) -> bool:
        """Whether there is a penalty at all."""
        return self.first_weight > 0

    @property
    def first_weight(self) -> float:
        """λ of the first step, and of all others unless it is steered."""
        if self.kv_weight != AUTO:
            return cast(float, self.kv_weight)
        return DEFAULT_START if self.kv_weight_start is None else self.kv_weight_start

    def auto_weight(self) -> AutoWeight | None:
        """Returns what steers λ in a run of this config; None when it is a number.

        Raises:
            ConfigError: the budget or the start is out of range.
        """
        if self.kv_weight != AUTO:
            return None
        budget = DEFAULT_BUDGET if self.kv_budget is None else self.kv_budget
        return AutoWeight(budget, self.first_weight)

    def _check_auto(self) -> None:
        given = {"kv_budget": self.kv_budget, "kv_weight_start": self.kv_weight_start}
        given = {name: value for name, value in given.items() if value is not None}
        if self.kv_weight != AUTO and given:
            raise ConfigError(
                f"{', '.join(given)} works with kv_weight={AUTO!r} only; kv_weight is "
                f"{self.kv_weight}."
            )
        self.auto_weight()

    def _check_values(self) -> None:
        _check_choice("kv_states", self.kv_states, get_args(States))
        _check_choice("kv_postfix_reference", self.kv_postfix_reference, get_args(PostfixSource))
        if self.kv_layers is not None:
            self.kv_layers = [int(layer) for layer in self.kv_layers]
            if not self.kv_layers:
                raise ConfigError("kv_layers is empty: name at least one layer, or leave it unset.")

    def _check_reference(self) -> None:
        if self.kv_reference is None:
            return
        if not Path(self.kv_reference).is_file():
            raise ConfigError(
                f"kv_reference: there is no file {self.kv_reference!r}; record one with "
                "`treft reference record`."
            )
        if "postfix" in self.kv_regions and self.kv_postfix_reference == "own_query":
            raise ConfigError(
                "kv_reference: a file holds postfixes after an empty query, and each row's own is "
                "asked for: leave kv_reference out, or set kv_postfix_reference='empty_query'."
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


def _weight(weight: float | str | None) -> float | str:
    """λ as a number, or "auto"."""
    try:
        number = AUTO if weight == AUTO else float(cast(float, weight))
    except (TypeError, ValueError):
        number = float("nan")
    if number != AUTO and not 0 <= cast(float, number) < float("inf"):
        raise ConfigError(f"kv_weight must be a finite number ≥ 0, or {AUTO!r}; not {weight!r}.")
    return number


def _region_weights(
    weights: Mapping[str, Any] | str | None, regions: Sequence[str]
) -> dict[str, Any] | None:
    """Weights by held region as numbers."""
    if weights is None:
        return None
    try:
        found = json.loads(weights) if isinstance(weights, str) else weights
        numbers = {cast(RegionName, name): float(weight) for name, weight in found.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            'kv_region_weights must be numbers by region, as {"prefix": 1, "postfix": 0.3}; '
            f"got {weights!r}."
        ) from error
    check_region_weights("kv_region_weights", numbers, cast(Sequence[RegionName], regions))
    return cast(dict[str, Any], numbers)


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")


def as_treft_config(args: TReFTConfig | TrainingArguments | None, model: Any) -> TReFTConfig:
    """Returns the config to train with: another trainer's gets the `kv_*` defaults.

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
