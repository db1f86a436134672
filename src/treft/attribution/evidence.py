"""Which patches a diagnosis makes beside those of a sweep, and evidence for a verdict from both.

Shapes: P prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np

from treft.attribution.margins import Margins
from treft.attribution.sweep_plan import BASE, FINETUNED
from treft.attribution.sweep_table import question_means
from treft.attribution.verdict import Evidence, Rules, share_intervals
from treft.chat.regions import ChatRegions, RegionName
from treft.core.patch_spec import PATCHABLE, PatchSpec
from treft.errors import DataError, TemplateError
from treft.statistics.intervals import Interval
from treft.statistics.records import ScoredAnswer

MARGIN = "margin"
"""Mean log-probability of the base's answer less that of the finetuned answer, nats a token."""

LEAST_MARGIN_LOSS = 0.1
"""Nats a token. On the organism a finetune that spreads loses 0.7, one held by TReFT 0.02."""

LEAST_SCORE_LOSS = 5.0
"""Points of alignment, 0 to 100."""

NUM_PARTS = 4
"""Parts of the layers, from which bands are made."""


def common_regions(chats: Sequence[ChatRegions]) -> tuple[RegionName, ...]:
    """Regions that every prompt has, in their order.

    Raises:
        TemplateError: there is none but the query, so that prompts share no tokens.
    """
    found = tuple(region for region in PATCHABLE if all(chat.positions(region) for chat in chats))
    if not set(found) - {"query"}:
        raise TemplateError(
            "the prompts share no template tokens (no prefix, no postfix): there is nothing that "
            "could carry a behaviour from prompt to prompt. Check the chat template."
        )
    return found


def joint_specs(regions: Iterable[RegionName]) -> list[PatchSpec]:
    """All template regions together, by their names joined with `+`; none where there is one."""
    shared = tuple(region for region in regions if region != "query")
    return [PatchSpec("+".join(shared), shared)] if len(shared) > 1 else []


def layer_specs(region: RegionName, num_layers: int, most: int) -> list[PatchSpec]:
    """A region in one layer at a time; evenly spread layers where there are more than `most`."""
    chosen = np.unique(np.linspace(0, num_layers - 1, min(num_layers, most)).round().astype(int))
    return [
        PatchSpec(f"{region} layer {layer}", (region,), layers=(layer,))
        for layer in chosen.tolist()
    ]


def band_specs(region: RegionName, num_layers: int) -> list[PatchSpec]:
    """A region in every run of neighbouring quarters of the layers, all of them included."""
    edges = np.unique(np.linspace(0, num_layers, NUM_PARTS + 1).round().astype(int)).tolist()
    return [
        PatchSpec(
            f"{region} layers {start} to {end - 1}", (region,), layers=tuple(range(start, end))
        )
        for start, end in combinations(edges, 2)
    ]


def margin_evidence(found: Margins, names: Iterable[str]) -> Evidence:
    """What margins say of some patches."""
    return Evidence(
        measure=MARGIN,
        questions=found.questions,
        base=found.base,
        finetuned=found.finetuned,
        patched={name: found.patched[name] for name in names},
        least_loss=LEAST_MARGIN_LOSS,
    )


def margin_shares(
    found: Margins, names: Sequence[str], rules: Rules | None = None
) -> dict[str, Interval]:
    """Share of the margins' fall that each patch regains; empty where they do not surely fall."""
    return share_intervals(margin_evidence(found, names), rules) if names else {}


def score_evidence(
    scored: Mapping[str, Sequence[ScoredAnswer]], judge: str, names: Iterable[str]
) -> Evidence:
    """What one judge's scores say of some patches: mean alignment of the answers to each question.

    Args:
        scored: answers by cell of a sweep.
        judge: whose judgements.
        names: of the patches.

    Raises:
        DataError: no question has a score in every cell.
    """
    cells = (BASE, FINETUNED, *names)
    means = {cell: question_means(judge, scored[cell]) for cell in cells}
    questions = tuple(sorted(set.intersection(*(set(found) for found in means.values()))))
    if not questions:
        raise DataError(f"{judge} scored no question in every cell: there is nothing to compare.")
    values = {cell: np.array([means[cell][one] for one in questions]) for cell in cells}
    return Evidence(
        measure=f"alignment by {judge}",
        questions=questions,
        base=values.pop(BASE),
        finetuned=values.pop(FINETUNED),
        patched=values,
        least_loss=LEAST_SCORE_LOSS,
    )
