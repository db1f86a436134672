"""A measure on single prompts, and the share of its fall that patches regain.

The measure is any number per prompt that falls from the base to the finetuned model and that a
patch may restore: an alignment score, or the log-probability margin of `margins.py`. A patch's
*share* is how much of the fall it regains, Σ (patched - finetuned) / Σ (base - finetuned): 1 for a
patch that brings the base back, 0 for one that does nothing.

Shapes: P prompts, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from treft.errors import ConfigError, DataError
from treft.statistics.bootstrap import NUM_RESAMPLES, Loss, Share
from treft.statistics.intervals import FloatArray, Interval
from treft.statistics.measures import AlignmentScore
from treft.statistics.records import ScoredAnswer

MARGIN = "margin"
"""Mean log-probability of the base's answer less that of the finetuned answer, nats a token."""

LEAST_MARGIN_LOSS = 0.1
"""Nats a token. On the organism a finetune that spreads loses 0.7, one held by TReFT 0.02."""

LEAST_SCORE_LOSS = 5.0
"""Points of alignment, 0 to 100."""


@dataclass(frozen=True)
class Rules:
    """When something is said.

    Attributes:
        least_questions: prompts below which no verdict is given.
        least_share: a carrier regains at least this share of the loss.
        confidence: of the interval, and share of resamples in which a carrier must be the best.
        num_resamples: R.
        seed: draws them.

    Raises:
        ConfigError: a number is out of range.
    """

    least_questions: int = 10
    least_share: float = 0.25
    confidence: float = 0.95
    num_resamples: int = NUM_RESAMPLES
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate before anything is measured."""
        if not 0 < self.least_share < 1 or not 0.5 < self.confidence < 1:
            raise ConfigError(
                f"least_share is {self.least_share} and confidence {self.confidence}: give shares "
                "of less than 1 (confidence: more than a half)."
            )
        if self.least_questions < 2 or self.num_resamples < 100:
            raise ConfigError("a verdict needs at least 2 questions and 100 resamples.")


DEFAULT_RULES = Rules()


@dataclass(frozen=True)
class Evidence:
    """One measure on P prompts, under both models and under patches.

    Attributes:
        questions: names of the prompts.
        base: of the unfinetuned model (P,).
        finetuned: of the finetuned model (P,).
        patched: of the finetuned model under each patch, by its name, (P,) each.
        alike: whether both models answer alike, so that the measure is 0 throughout (P,); empty
            where that is not asked.
        measure: what the numbers are, with their unit.
        least_loss: fall from base to finetuned, in the measure's unit, that counts as spread.

    Raises:
        DataError: lengths differ, there is no prompt, or a number is not finite.
    """

    questions: tuple[str, ...]
    base: FloatArray
    finetuned: FloatArray
    patched: Mapping[str, FloatArray]
    alike: tuple[bool, ...] = ()
    measure: str = MARGIN
    least_loss: float = LEAST_MARGIN_LOSS

    def __post_init__(self) -> None:
        if not self.questions:
            raise DataError(f"{self.measure} needs at least one prompt.")
        every = {"base": self.base, "finetuned": self.finetuned, **self.patched}
        for name, values in every.items():
            if values.shape != (len(self.questions),):
                raise DataError(
                    f"{name} has {values.shape} values of {self.measure} for "
                    f"{len(self.questions)} prompts."
                )
            if not np.isfinite(values).all():
                row = int(np.flatnonzero(~np.isfinite(values))[0])
                raise DataError(
                    f"{self.measure} of {name} is {values[row]} at prompt {self.questions[row]!r}: "
                    "leave the prompt out, or check the model's precision."
                )

    @property
    def num_alike(self) -> int:
        """Prompts without a signal; they count as 0 in every mean."""
        return sum(self.alike)

    def only(self, names: Iterable[str]) -> Evidence:
        """Returns the same on some patches."""
        return replace(self, patched={name: self.patched[name] for name in names})

    def loss(self, rules: Rules = DEFAULT_RULES) -> Loss:
        """Returns the fall from base to finetuned, bootstrapped over prompts."""
        return Loss.of(
            self.base - self.finetuned,
            num_resamples=rules.num_resamples,
            seed=rules.seed,
            confidence=rules.confidence,
        )

    def gains(self, loss: Loss) -> dict[str, Share]:
        """Returns what each patch regains of a loss (`loss`)."""
        return {name: loss.share(each - self.finetuned) for name, each in self.patched.items()}

    def shares(self, rules: Rules = DEFAULT_RULES) -> dict[str, Interval]:
        """Returns the share of the fall that each patch regains: 1 is all of it.

        Returns:
            Nothing where the measure does not surely fall, so that nothing can be regained.
        """
        loss = self.loss(rules)
        if not loss.is_sure:
            return {}
        return {name: share.interval for name, share in self.gains(loss).items()}

    def share(self, name: str) -> Interval | None:
        """Returns the share that one patch regains; None where nothing can be."""
        return self.only([name]).shares().get(name)


def score_evidence(
    judge: str,
    base: Sequence[ScoredAnswer],
    finetuned: Sequence[ScoredAnswer],
    patched: Mapping[str, Sequence[ScoredAnswer]],
) -> Evidence:
    """Returns what one judge's scores say of patches: mean alignment of the answers to a question.

    Args:
        judge: whose judgements.
        base: answers of the unfinetuned model.
        finetuned: answers of the finetuned model.
        patched: answers of the finetuned model under each patch, by its name.

    Raises:
        DataError: no question has a score in every cell.
    """
    means = [question_means(judge, answers) for answers in (base, finetuned, *patched.values())]
    questions = tuple(sorted(set.intersection(*map(set, means))))
    if not questions:
        raise DataError(f"{judge} scored no question in every cell: there is nothing to compare.")
    whole, tuned, *others = (np.array([found[one] for one in questions]) for found in means)
    return Evidence(
        questions,
        whole,
        tuned,
        dict(zip(patched, others, strict=True)),
        measure=f"alignment by {judge}",
        least_loss=LEAST_SCORE_LOSS,
    )


def question_means(judge: str, answers: Sequence[ScoredAnswer]) -> dict[str, float]:
    """Returns the mean alignment of the answers to each question (Q entries)."""
    clusters = AlignmentScore(judge).tally(answers).clusters
    if clusters is None:
        return {}
    means = clusters.totals / clusters.sizes
    return dict(zip(clusters.questions, means.tolist(), strict=True))
