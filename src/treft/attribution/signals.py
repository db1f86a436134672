"""The cheap signals of one finetune together: drift, size, margins. No answer is judged.

Shapes: P prompts, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from treft.answers.questions import EvalQuestion
from treft.attribution.drift_map import DriftMap, drift_map
from treft.attribution.evidence import Evidence
from treft.attribution.forcing import render_questions
from treft.attribution.margins import DEFAULT, AnswerPair, margins
from treft.attribution.options import Rendering
from treft.attribution.weights import KEY_VALUE_PROJECTIONS, AdapterScales, adapter_scales
from treft.chat.regions import RegionName
from treft.core.patch_spec import PatchSpec
from treft.core.reference import ReferenceBank
from treft.data.messages import read_rows
from treft.errors import ConfigError, DataError
from treft.models.pair import ModelPair
from treft.models.repair import RepairedModel
from treft.statistics.intervals import Interval


@dataclass(frozen=True)
class Signals:
    """What can be known of a finetune without sampling answers under patches.

    Attributes:
        drift: of keys and values, prompt by prompt.
        scales: of the adapter, and the size of what it changes.
        margins: under each patch.
        specs: the patches.
    """

    drift: DriftMap
    scales: AdapterScales
    margins: Evidence
    specs: tuple[PatchSpec, ...]

    def drift_of(self, spec: PatchSpec) -> float:
        """L_KV of eq. (3) at what a patch replaces: its regions, kinds and layers.

        Raises:
            ConfigError: the patch is one of single tokens.
        """
        if spec.window is not None or spec.num_positions is not None:
            raise ConfigError(f"the drift of {spec.name!r} is not known: it patches single tokens.")
        layers = self.drift.layers if spec.layers is None else spec.layers
        rows = [self.drift.layers.index(layer) for layer in layers]
        found = [
            sum(getattr(self.drift.region(region), kind)[:, rows].mean() for kind in spec.kinds)
            for region in spec.regions
        ]
        return float(np.mean(found))

    def normalised(self, drift: float) -> float | None:
        """Drift over the adapter's scale squared; None where there is no one scale."""
        return None if self.scales.scale is None else drift / self.scales.scale**2

    def to_dict(self) -> dict[str, Any]:
        """For JSON; docs/attribution.md says what each key is."""
        loss = self.margins.loss().interval
        return {
            "num_prompts": len(self.margins.questions),
            "num_alike": self.margins.num_alike,
            "scale": self.scales.scale,
            "weight_norm": self.scales.norm(),
            "key_value_norms": {
                layer: self.scales.norm(layer, KEY_VALUE_PROJECTIONS) for layer in self.drift.layers
            },
            "drift": [self._region(region) for region in self.drift.regions],
            "margin": {
                "base": float(self.margins.base.mean()),
                "finetuned": float(self.margins.finetuned.mean()),
                "loss": loss._asdict(),
            },
            "patches": [self._patch(spec) for spec in self.specs],
        }

    def _region(self, region: RegionName) -> dict[str, Any]:
        key, value = self.drift.region(region)
        total = float((key + value).mean())
        return {
            "region": region,
            "key": dict(zip(self.drift.layers, key.mean(axis=0).tolist(), strict=True)),
            "value": dict(zip(self.drift.layers, value.mean(axis=0).tolist(), strict=True)),
            "total": total,
            "total_over_scale_squared": self.normalised(total),
        }

    def _patch(self, spec: PatchSpec) -> dict[str, Any]:
        share: Interval | None = self.margins.share(spec.name)
        return {
            "patch": spec.name,
            "margin": float(self.margins.patched[spec.name].mean()),
            "share": None if share is None else share._asdict(),
        }


def measure_signals(
    models: ModelPair,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[AnswerPair],
    specs: Sequence[PatchSpec],
    rendering: Rendering = DEFAULT,
    on_batch: Callable[[int], None] | None = None,
) -> Signals:
    """Measure all of them on the same prompts.

    Args:
        models: the finetuned model and its base.
        tokenizer: of both.
        pairs: two answers to each prompt.
        specs: the patches; drift is taken of their regions.
        rendering: how the prompts were asked.
        on_batch: told how many prompts have their margins.

    Raises:
        ConfigError: the finetuned model equals its base, or a patch cannot be.
        DataError: a prompt cannot be used; see `margins`.
        TemplateError: a prompt lacks a region.
    """
    model = models.finetuned
    scales = adapter_scales(model, models.base)
    if scales.is_zero:
        raise ConfigError(
            "the finetuned model's weights are those of its base (drift 0), so there is nothing "
            "to attribute. Was the right adapter or folder given?"
        )
    bank = ReferenceBank(models.source)
    patched = [RepairedModel(model, tokenizer, bank, spec) for spec in specs]
    found = margins(models, tokenizer, pairs, patched, rendering, on_batch)
    questions = [pair.question for pair in pairs]
    chats = render_questions(tokenizer, questions, **rendering.of_chats)
    regions = tuple(dict.fromkeys(region for spec in specs for region in spec.regions))
    size = rendering.batch_size
    drift = drift_map(model, tokenizer, bank, chats, regions, batch_size=size)
    return Signals(drift, scales, found, tuple(specs))


def read_pairs(path: Path, questions: Sequence[EvalQuestion]) -> list[AnswerPair]:
    """Aligned and misaligned answers that the user brings, instead of the models' own.

    A row is `{"id": ..., "aligned": ..., "misaligned": ...}`; each question has one.

    Args:
        path: JSONL file.
        questions: whose answers they are.

    Raises:
        DataError: a row is malformed, is of no question, or comes twice, or a question has none.
    """
    by_id = {question.id: question for question in questions}
    found: dict[str, AnswerPair] = {}
    for row, where in read_rows(path):
        aligned, misaligned = row.get("aligned"), row.get("misaligned")
        if not _is_text(aligned) or not _is_text(misaligned):
            raise DataError(f"{where}: write `aligned` and `misaligned`, a text each.")
        name = str(row.get("id"))
        if name not in by_id:
            raise DataError(f"{where}: no question has the id {name!r}; drop the row, or mend it.")
        if name in found:
            raise DataError(f"{where}: question {name!r} comes twice; drop one of the rows.")
        found[name] = AnswerPair(by_id[name], str(aligned), str(misaligned))
    if missing := [name for name in by_id if name not in found]:
        raise DataError(
            f"{path}: no answers to question {missing[0]!r} ({len(missing)} such questions): add a "
            "row for each, or ask fewer questions (--num)."
        )
    return [found[name] for name in by_id]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
