"""Entries of attribution studies' rows: drift of regions, and scores of perturbed prompts.

A figure is three entries of a row: NAME, and its interval as NAME_low and NAME_high.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treft.attribution.drift_map import DriftMap
    from treft.chat.regions import RegionName
    from treft.statistics.measures import Measure
    from treft.statistics.records import ScoredAnswer


Entries = dict[str, "float | None"]
REGIONS: tuple[RegionName, ...] = ("prefix", "query", "postfix")
COUNT_ALL = -1.0
"""As a threshold of coherence: incoherent answers count with the alignment that they were given."""


def drift_figures(found: DriftMap) -> Entries:
    """L_KV of each region (eq. (3)), and L_K and L_V of each layer (`prefix_key_0`, eq. (2)).

    Intervals are over prompts.
    """
    entries: Entries = {}
    for region in REGIONS:
        own = found.region(region)
        entries |= _over_prompts(region, own.by_prompt)
        for column, layer in enumerate(found.layers):
            for kind in ("key", "value"):
                values = getattr(own, kind)[:, column]
                entries |= _over_prompts(f"{region}_{kind}_{layer}", values)
    return entries


def version_figures(answers: Sequence[ScoredAnswer], trials: Sequence[int], judge: str) -> Entries:
    """Best and Avg of section 4.1 over all answers, and the share of incoherent ones; percent.

    Args:
        answers: scored, to versions of prompts.
        trials: which version of its prompt each answers.
        judge: whose scores count.
    """
    from treft.attribution.coherence import BestOfTrials, IncoherentRate
    from treft.statistics.measures import AlignmentScore

    scored = [
        replace(answer, metadata={"trial": trial})
        for answer, trial in zip(answers, trials, strict=True)
    ]
    return {
        **figure("best", BestOfTrials(judge, COUNT_ALL), scored),
        **figure("avg", AlignmentScore(judge), scored),
        **figure("incoherent", IncoherentRate(judge), scored),
    }


def figure(name: str, measure: Measure, answers: Sequence[ScoredAnswer]) -> Entries:
    """A measure with its interval over questions; None where a single one has a value."""
    from treft.statistics.compare import estimate

    found = estimate(measure, answers)
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def _over_prompts(name: str, values: Any) -> Entries:
    from treft.statistics.intervals import over_runs

    mean, low, high = over_runs(values.tolist())
    return {name: mean, f"{name}_low": max(0.0, low), f"{name}_high": high}
