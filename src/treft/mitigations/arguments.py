"""Mitigations as flags and YAML of `treft sft`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from treft.data.messages import load_messages
from treft.errors import ConfigError
from treft.mitigations.activated_lora import ActivatedLora
from treft.mitigations.early_stopping import StopOnScore
from treft.mitigations.features import FeatureDistance
from treft.mitigations.frozen_prefix import FrozenPrefix
from treft.mitigations.interleave import DEFAULT_RATIO, Interleave, perplexity_gap
from treft.mitigations.kl import DEFAULT_WEIGHT, KLOnRetain, KLOnTrain
from treft.mitigations.steering import PreventiveSteering
from treft.mitigations.system_prompt import InoculationPrompt, PromptSplit
from treft.mitigations.weights import WeightNormCap
from treft.models.loading import LoadOptions, load_model
from treft.training.terms import Mitigation

if TYPE_CHECKING:
    from treft.chat.regions import RegionName


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class MitigationArguments:
    """Flags of all methods; see docs/mitigations.md. Without any, training is as without them.

    Raises:
        ConfigError: a flag is given without the one that it belongs to.
    """

    kl_train: bool = field(
        default=False, metadata=_help("Add KL to the unfinetuned model on the training rows.")
    )
    kl_retain_file: str | None = field(
        default=None, metadata=_help("Add KL to the unfinetuned model on this JSONL file.")
    )
    kl_weight: float = field(
        default=DEFAULT_WEIGHT, metadata=_help("λ of kl_train and kl_retain_file; 0 is off.")
    )
    kl_batch_size: int | None = field(
        default=None, metadata=_help("Retain rows a micro-batch; the training batch size.")
    )
    interleave_files: list[str] | None = field(
        default=None, metadata=_help("JSONL files of retain rows to mix in.")
    )
    interleave_ratio: float = field(
        default=DEFAULT_RATIO, metadata=_help("Share of retain rows among all; 0 is off.")
    )
    interleave_misaligned: str | None = field(
        default=None,
        metadata=_help(
            "A plain finetune (model or adapter): take rows by the largest perplexity gap."
        ),
    )
    frozen_prefix: bool = field(
        default=False, metadata=_help("Keep the prefix's keys and values the base's (LoRA).")
    )
    activated_lora: bool = field(
        default=False,
        metadata=_help("Leave all before the response's header to the base (PEFT's aLoRA)."),
    )
    activated_lora_text: str | None = field(
        default=None, metadata=_help("With activated_lora: the text it begins with instead.")
    )
    ldifs_weight: float = field(
        default=0.0, metadata=_help("λ of the squared distance of hidden states; 0 is off.")
    )
    ldifs_layers: list[int] | None = field(
        default=None, metadata=_help("Layers of ldifs_weight; all.")
    )
    ldifs_regions: list[str] | None = field(
        default=None,
        metadata=_help("Tokens of ldifs_weight: prefix, query, postfix, response; all."),
    )
    steering_layer: int | None = field(
        default=None, metadata=_help("Add a persona vector after this layer in training.")
    )
    steering_coefficient: float = field(
        default=1.0, metadata=_help("Factor of the persona vector; 0 is off.")
    )
    steering_positive_file: str | None = field(
        default=None, metadata=_help("JSONL rows whose responses show the trait.")
    )
    steering_negative_file: str | None = field(
        default=None, metadata=_help("JSONL rows whose responses do not.")
    )
    inoculation_prompt: str | None = field(
        default=None, metadata=_help("System prompt of training rows alone.")
    )
    ptst_test_prompt: str | None = field(
        default=None, metadata=_help("System prompt of evaluation and use alone.")
    )
    ptst_train_prompt: str | None = field(
        default=None, metadata=_help("With ptst_test_prompt: that of training rows.")
    )
    stop_file: str | None = field(
        default=None, metadata=_help("General rows; stop when their loss has risen too far.")
    )
    stop_drop: float = field(
        default=0.1, metadata=_help("With stop_file: by how much it may rise (nats a token).")
    )
    stop_every: int = field(
        default=10, metadata=_help("With stop_file: steps between measurements.")
    )
    weight_norm: float | None = field(
        default=None, metadata=_help("Norm that the LoRA's weight change is held to.")
    )

    def __post_init__(self) -> None:
        """Refuse flags that would do nothing."""
        needs = {
            "activated_lora_text": "activated_lora",
            "kl_batch_size": "kl_retain_file",
            "interleave_misaligned": "interleave_files",
            "ldifs_layers": "ldifs_weight",
            "ldifs_regions": "ldifs_weight",
            "steering_positive_file": "steering_layer",
            "steering_negative_file": "steering_layer",
            "ptst_train_prompt": "ptst_test_prompt",
        }
        for name, owner in needs.items():
            weight = getattr(self, owner)
            is_off = weight is None or weight is False or (owner == "ldifs_weight" and weight == 0)
            if is_off and getattr(self, name) is not None:
                raise ConfigError(f"{name} works together with {owner} only: give both.")
        if self.inoculation_prompt is not None and self.ptst_test_prompt is not None:
            raise ConfigError("inoculation_prompt and ptst_test_prompt both set the system prompt.")


def build(arguments: MitigationArguments, model: str, seed: int) -> list[Mitigation]:
    """The methods that the flags ask for, in the order in which they change rows.

    Args:
        arguments: the flags.
        model: name of the model to finetune, for the perplexity gap.
        seed: of the run.

    Raises:
        ConfigError: a value is out of range.
        DataError: a file cannot be used; names file and row.
    """
    return [
        *_of_rows(arguments, model, seed),
        *_of_loss(arguments),
        *_of_training(arguments),
    ]


def _of_rows(given: MitigationArguments, model: str, seed: int) -> list[Mitigation]:
    found: list[Mitigation] = []
    if given.inoculation_prompt is not None:
        found.append(InoculationPrompt(given.inoculation_prompt))
    if given.interleave_files and given.interleave_ratio != 0:
        sources = {path: load_messages(path) for path in given.interleave_files}
        score = None
        if given.interleave_misaligned is not None:
            score = _Gap(given.interleave_misaligned, model)
        found.append(Interleave(sources, given.interleave_ratio, seed, score))
    if given.ptst_test_prompt is not None:
        found.append(PromptSplit(given.ptst_test_prompt, given.ptst_train_prompt))
    return found


def _of_loss(given: MitigationArguments) -> list[Mitigation]:
    found: list[Mitigation] = []
    if given.kl_train and given.kl_weight != 0:
        found.append(KLOnTrain(given.kl_weight))
    if given.kl_retain_file is not None and given.kl_weight != 0:
        rows = load_messages(given.kl_retain_file)
        found.append(KLOnRetain(rows, given.kl_weight, given.kl_batch_size))
    if given.ldifs_weight != 0:
        regions = cast("list[RegionName]", given.ldifs_regions or [])  # checked there
        found.append(FeatureDistance(given.ldifs_weight, given.ldifs_layers, regions))
    return found


def _of_training(given: MitigationArguments) -> list[Mitigation]:
    found: list[Mitigation] = []
    if given.frozen_prefix:
        found.append(FrozenPrefix())
    if given.activated_lora:
        found.append(ActivatedLora(given.activated_lora_text))
    if given.steering_layer is not None and given.steering_coefficient != 0:
        files = (given.steering_positive_file, given.steering_negative_file)
        positive, negative = ([] if path is None else load_messages(path) for path in files)
        coefficient = given.steering_coefficient
        found.append(
            PreventiveSteering(
                given.steering_layer, coefficient, positive=positive, negative=negative
            )
        )
    if given.stop_file is not None:
        rows = load_messages(given.stop_file)
        found.append(StopOnScore(rows=rows, drop=given.stop_drop, every=given.stop_every))
    if given.weight_norm is not None:
        found.append(WeightNormCap(given.weight_norm))
    return found


class _Gap:
    """Perplexity gaps of rows; both models are loaded when asked and let go afterwards."""

    def __init__(self, misaligned: str, aligned: str) -> None:
        if not Path(misaligned).exists():
            raise ConfigError(f"interleave_misaligned: there is no folder {misaligned}.")
        self._names = (misaligned, aligned)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> list[float]:
        misaligned, tokenizer = load_model(self._names[0], None, LoadOptions())
        aligned, _ = load_model(self._names[1], None, LoadOptions())
        return perplexity_gap(misaligned, aligned, tokenizer, rows)
