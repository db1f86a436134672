"""What a diagnosis found, whole: what the command prints, the page shows and the JSON holds.

Shapes: P prompts, L layers, T tokens of one prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from treft.attribution.recommend import Recommendation
from treft.attribution.verdict import Diagnosis
from treft.statistics.intervals import Interval


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
        """As one JSON object; intervals have `mean`, `low` and `high`, shares are of 1."""
        found: dict[str, Any] = _plain(
            {each.name: getattr(self, each.name) for each in fields(self)}
        )
        return {**found, "command": "diagnose", "next_command": self.command}


def _plain(value: Any) -> Any:
    """Intervals by name, keys as text, tuples as lists."""
    if isinstance(value, Interval):
        return value._asdict()
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value
