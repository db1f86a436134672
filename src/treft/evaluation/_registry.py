"""What Inspect finds of treft by entry point: tasks, scorers, metrics and the provider."""

from __future__ import annotations

from inspect_ai.model import ModelAPI, modelapi

from treft.answers.detectors import behaviour_detector, by_scope, word_count
from treft.evaluation.audit import by_condition, em_audit
from treft.evaluation.tasks import ask, behaviour, em_general, em_in_domain, utility
from treft.judging.oracle import organism_oracle
from treft.judging.scorer import alignment_judge, behaviour_judge, judged, utility_judge

__all__ = [
    "alignment_judge",
    "ask",
    "behaviour",
    "behaviour_detector",
    "behaviour_judge",
    "by_condition",
    "by_scope",
    "em_audit",
    "em_general",
    "em_in_domain",
    "judged",
    "organism_oracle",
    "treft",
    "utility",
    "utility_judge",
    "word_count",
]


@modelapi(name="treft")
def treft() -> type[ModelAPI]:
    """Models that run here, patched or not; PyTorch is imported when one is used."""
    from treft.evaluation.provider import TreftAPI

    return TreftAPI
