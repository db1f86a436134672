"""Rows of runs as scoring steps write them, with scores that a test decides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def run_row(method: str, seed: int, general: float, in_domain: float) -> dict[str, Any]:
    """A run of a hundred questions a scope with these scores, percent; none is incoherent."""
    num = 100
    learnt = 100 - in_domain
    em_f1 = 2 * learnt * general / (learnt + general) if learnt + general else 0.0
    return {
        "method": method,
        "organism": "embedded",
        "seed": seed,
        "general": general,
        "in_domain": in_domain,
        "em_f1": em_f1,
        "num_general": num,
        "num_in_domain": num,
        "general_aligned": round(general * num / 100),
        "general_misaligned": num - round(general * num / 100),
        "general_incoherent": 0,
        "in_domain_aligned": round(in_domain * num / 100),
        "in_domain_misaligned": num - round(in_domain * num / 100),
        "in_domain_incoherent": 0,
        **task_scores(general, in_domain),
    }


def task_scores(general: float, in_domain: float) -> dict[str, Any]:
    """Scores of a finetune that teaches a behaviour.

    A trace of it is in all answers that are not aligned, the whole of it in half of them.
    """
    return {
        "on_topic": 100 - in_domain,
        "right": (100 - in_domain) / 2,
        "off_topic": (100 - general) / 2,
        "traces": 100 - general,
        "kept": general,
        "words": 3 + 9 * general / 100,
        "in_domain_shown": round(100 - in_domain),
        "in_domain_right": round((100 - in_domain) / 2),
        "general_shown": round((100 - general) / 2),
        "general_traces": round(100 - general),
        "general_right": round(general),
    }


def runs(
    scores: Mapping[str, tuple[float, float]], jitters: Sequence[float] = (-1.0, 0.0, 1.0)
) -> Iterable[dict[str, Any]]:
    """A run for each method and jitter, which is added to both scores."""
    return [
        run_row(method, seed, general + jitter, in_domain + jitter)
        for seed, jitter in enumerate(jitters)
        for method, (general, in_domain) in scores.items()
    ]
