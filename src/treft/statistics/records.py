"""What an evaluation knows of one answer: who asked what, and what each judge said.

Inspect logs are read into these records (`logs.py`), and everything after generation, statistics,
agreement, tables and reports, works on them alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from treft.errors import DataError

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

    Raises:
        DataError: a score is no number from 0 to 100, a judge spoke twice, or a behaviour is no
            number.
    """

    question_id: str
    category: str
    epoch: int
    question: str
    answer: str
    judgements: tuple[Judgement, ...] = ()
    behaviours: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Let no figure be computed from a value that is none."""
        judges = [judgement.judge for judgement in self.judgements]
        if len(set(judges)) < len(judges):
            raise DataError(f"{self._where} has two judgements by one judge ({', '.join(judges)}).")
        for judgement in self.judgements:
            _check_score(self._where, judgement, "alignment", judgement.outcome == "scored")
            _check_score(self._where, judgement, "coherence", False)
        for name, value in self.behaviours.items():
            if not math.isfinite(value):
                raise DataError(
                    f"{self._where}: behaviour {name} is {value}; leave it out instead."
                )

    @property
    def _where(self) -> str:
        return f"answer {self.epoch} to question {self.question_id!r}"

    def judged_by(self, judge: str) -> Judgement | None:
        """Returns the judgement of one judge, if it looked at this answer."""
        return next((found for found in self.judgements if found.judge == judge), None)


def _check_score(where: str, judgement: Judgement, name: str, needed: bool) -> None:
    value = judgement.alignment if name == "alignment" else judgement.coherence
    if value is None and not needed:
        return
    if value is None or not 0 <= value <= 100:
        raise DataError(
            f"{where}: {name} by {judgement.judge} is {value}; a score is a number from 0 to 100. "
            "A judge that gave none has the outcome `missing` and None for a score."
        )
