"""What a diagnosis found: what the command prints, the page shows and the JSON holds.

Shapes: P prompts, L layers, T tokens of one prompt.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from treft.attribution.drift_map import DriftMap
from treft.attribution.margins import AnswerPair
from treft.attribution.verdict import Diagnosis, Recommendation
from treft.attribution.weights import KEY_VALUE_PROJECTIONS, adapter_scales
from treft.chat.regions import REGION_CODES, ChatRegions
from treft.core.patch_spec import PatchSpec
from treft.errors import ConfigError
from treft.files import as_json
from treft.models.pair import ModelPair
from treft.statistics.intervals import Interval

NUM_HEATS = 2
NUM_SAMPLES = 12
NAMES = {code: name for name, code in REGION_CODES.items()}


@dataclass(frozen=True)
class PromptHeat:
    """One rendered prompt, token by token.

    Attributes:
        tokens: their text (T,).
        regions: of each token (T,); empty where a token belongs to none.
        drift: L_K + L_V of each token, mean over layers (T,).
        shares: share of the loss that a patch of the window around each token regains, mean over
            all prompts (T,); None where it was not measured.
    """

    tokens: tuple[str, ...]
    regions: tuple[str, ...]
    drift: tuple[float, ...]
    shares: tuple[float | None, ...]


@dataclass(frozen=True)
class AdapterLayer:
    """Of one layer: how strongly the finetune moved weights, and what that did to the regions.

    Attributes:
        layer: from 0.
        scale: of a LoRA (α/r or α/√r); None for a full finetune.
        delta_norms: ‖ΔW‖ (Frobenius) by projection.
        drift: L_K + L_V by region.
    """

    layer: int
    scale: float | None
    delta_norms: Mapping[str, float]
    drift: Mapping[str, float]


@dataclass(frozen=True)
class Sample:
    """One question with its answers.

    Attributes:
        question: the last user message.
        answers: by arm: base, finetuned, and a patch's name.
    """

    question: str
    answers: Mapping[str, str]


@dataclass(frozen=True)
class DiagnosisResult:
    """Everything.

    Attributes:
        diagnosis: the verdict that counts: by scores where answers were judged, else by margins.
        others: further verdicts by what they were made from, for comparison.
        recommendation: what to do next.
        command: to run next, in words of the shell; empty where nothing is recommended.
        num_tokens: of each region in the first prompt.
        changed: share of prompts to which base and finetuned model answer differently, percent.
        controls: share of the loss that control patches regain, by name.
        parts: share regained by single kinds, layers and joint regions, by name.
        layers: share regained by the carrier's patch in single layers, by layer.
        curve: share regained by activation patching of the prefix, by layer; empty if not run.
        adapter: layer by layer.
        heat: of the first prompts.
        samples: questions with answers.
        perturbation: table of perturbations, its headings first; empty if not run.
        settings: models, questions, seeds, budget, versions, machine.
        seconds: by step.
        notes: what was left out, and why.
    """

    diagnosis: Diagnosis
    others: Mapping[str, Diagnosis]
    recommendation: Recommendation
    command: str
    num_tokens: Mapping[str, int]
    changed: Interval
    controls: Mapping[str, Interval]
    parts: Mapping[str, Interval]
    layers: Mapping[int, Interval]
    curve: Mapping[int, Interval]
    adapter: tuple[AdapterLayer, ...]
    heat: tuple[PromptHeat, ...]
    samples: tuple[Sample, ...]
    perturbation: tuple[tuple[str, ...], ...]
    settings: Mapping[str, Any]
    seconds: Mapping[str, float]
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Returns one JSON object; intervals have `mean`, `low` and `high`, shares are of 1."""
        return {**as_json(vars(self)), "command": "diagnose", "next_command": self.command}


def drift_by_region(drift: DriftMap) -> dict[str, float]:
    """L_KV of eq. (3) by region, mean over the prompts."""
    return {region: float(drift.region(region).by_prompt.mean()) for region in drift.regions}


def adapter_layers(pair: ModelPair, drift: DriftMap) -> tuple[tuple[AdapterLayer, ...], str]:
    """Size of the finetune and drift of each layer; and why the size is not there, if it is not."""
    by_region = {region: drift.region(region) for region in drift.regions}
    try:
        changes = adapter_scales(pair.finetuned, pair.base).changes
    except ConfigError as error:
        changes, note = (), f"‖ΔW‖ was left out: {error}"
    else:
        note = ""
    found = []
    for place, layer in enumerate(drift.layers):
        of_layer = [one for one in changes if one.layer == layer]
        here = [one for one in of_layer if one.projection in KEY_VALUE_PROJECTIONS]
        scales = {one.scale for one in here}
        found.append(
            AdapterLayer(
                layer=layer,
                scale=scales.pop() if len(scales) == 1 else None,
                delta_norms={one.projection: one.norm for one in here},
                drift={
                    region: float((parts.key + parts.value)[:, place].mean())
                    for region, parts in by_region.items()
                },
            )
        )
    return tuple(found), note


def heat_of(
    drift: DriftMap, specs: Sequence[PatchSpec], shares: Mapping[str, Interval]
) -> tuple[PromptHeat, ...]:
    """Returns the first prompts, token by token.

    Args:
        drift: of all prompts.
        specs: patches of windows.
        shares: what they regain, by name; a token has the mean of the windows that it is in.
    """
    return tuple(
        _heat(drift, index, specs, shares) for index in range(min(NUM_HEATS, len(drift.chats)))
    )


def _heat(
    drift: DriftMap, index: int, specs: Sequence[PatchSpec], shares: Mapping[str, Interval]
) -> PromptHeat:
    chat = drift.chats[index]
    moved = (drift.key[index] + drift.value[index]).mean(axis=0)
    by_position = dict(zip(drift.positions[index], moved.tolist(), strict=True))
    regained: dict[int, list[float]] = {}
    for spec in specs:
        if spec.name in shares:
            for position in _places(chat, spec):
                regained.setdefault(position, []).append(shares[spec.name].mean)
    every = range(len(chat.input_ids))
    return PromptHeat(
        tokens=tuple(chat.text[slice(*chat.offsets[position])] for position in every),
        regions=tuple(NAMES.get(code, "") for code in chat.codes),
        drift=tuple(by_position.get(position, 0.0) for position in every),
        shares=tuple(
            sum(regained[position]) / len(regained[position]) if position in regained else None
            for position in every
        ),
    )


def _places(chat: ChatRegions, spec: PatchSpec) -> Iterator[int]:
    """Positions that a window patches."""
    assert spec.window is not None
    for region in spec.regions:
        yield from chat.positions(region, 0)[slice(*spec.window)]


def samples_of(
    pairs: Sequence[AnswerPair], patched: Mapping[str, Sequence[str]]
) -> tuple[Sample, ...]:
    """Prompts that are answered differently, the first ones.

    Args:
        pairs: greedy answers of both models.
        patched: greedy answers to the same prompts by name of the patch.
    """
    found = []
    for index, pair in enumerate(pairs):
        if pair.is_alike:
            continue
        answers = {"base": pair.base_answer, "finetuned": pair.finetuned_answer}
        answers |= {name: texts[index] for name, texts in patched.items()}
        found.append(Sample(str(pair.question.messages[-1]["content"]), answers))
    return tuple(found[:NUM_SAMPLES])


def next_command(names: Mapping[str, str], recommendation: Recommendation) -> str:
    """The finetune again, with what is recommended; empty where nothing is.

    Args:
        names: what the user called `base` and `train_file`.
        recommendation: what to hold.
    """
    if not recommendation.regions:
        return ""
    words = ["treft", "sft", "--model_name_or_path", names.get("base", "BASE")]
    words += ["--train_file", names.get("train_file", "ROWS.jsonl")]
    words += ["--output_dir", "treft-out", "--assistant_only_loss"]
    words += ["--kv_regions", *recommendation.regions]
    weight = recommendation.kv_weight
    words += ["--kv_weight", f"{weight:g}" if isinstance(weight, float) else str(weight)]
    if "postfix" in recommendation.regions:
        # Held at what it is after an empty query, it could no longer tell what was asked.
        words += ["--kv_postfix_reference", "own_query"]
    if recommendation.layers is not None:
        words += ["--kv_layers", *map(str, recommendation.layers)]
    return shlex.join(words) + "  # and the options of your finetune"
