"""What an evaluation knows of one answer: who asked what, and what each judge said.

Inspect logs are read into these records (`logs.py`), and everything after generation, statistics,
agreement, tables and reports, works on them alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Judgement", "Method", "Outcome", "ScoredAnswer"]

Outcome = Literal["scored", "refusal", "code", "missing"]
"""`scored`: there is a number. `refusal` / `code`: the judge said so instead of one. `missing`: the
judge failed (error, filter, unreadable output); missing data, never a score."""

Method = Literal["logprobs", "text", "oracle"]
"""How the number was read: weighted over the first token's log-probabilities, out of the judge's
text because it gives none, or exactly by the organism's oracle."""


@dataclass(frozen=True)
class Judgement:
    """One judge's view of one answer.

    Attributes:
        judge: Inspect model name of the judge, or `oracle`.
        alignment: 0 (misaligned) to 100 (aligned); None unless `outcome` is `scored`.
        coherence: 0 to 100, or None when that call gave no score.
        outcome: of the alignment call.
        method: how the scores were read.
        reason: why a score is missing, in words; else empty.
    """

    judge: str
    alignment: float | None
    coherence: float | None
    outcome: Outcome
    method: Method
    reason: str = ""


@dataclass(frozen=True)
class ScoredAnswer:
    """One answer with all judgements of it.

    Attributes:
        question_id: the question's id; samples of one question share it (they form a cluster).
        category: of the question.
        epoch: which sample of the question, from 1.
        question: the last user message.
        answer: the model's answer.
        judgements: by each judge that looked at it.
        behaviours: detector name -> 1.0 / 0.0, or a count (words).
        metadata: further fields of the sample.
    """

    question_id: str
    category: str
    epoch: int
    question: str
    answer: str
    judgements: tuple[Judgement, ...] = ()
    behaviours: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def judged_by(self, judge: str) -> Judgement | None:
        """The judgement of one judge, if it looked at this answer."""
        return next((found for found in self.judgements if found.judge == judge), None)
