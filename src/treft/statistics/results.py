"""What the statistics return: figures with their intervals, sizes, settings and cautions."""

from __future__ import annotations

from dataclasses import dataclass

from treft.statistics.measures import AnswerCounts, EMRate, Measure


@dataclass(frozen=True)
class Estimate:
    """One figure of one set of answers.

    Attributes:
        measure: what it is, with its settings.
        value: in the measure's unit.
        low: of the 95 % interval; None where one question is all there is to a mean of counts.
        high: likewise.
        num_questions: questions behind the value.
        num_samples: answers behind the value.
        counts: what became of all answers.
        design_effect: by what the likeness of answers to one question multiplies the variance of
            the mean; None where it cannot be known.
        method: how the interval was made, in words.
        caution: what to bear in mind when reading it, in words; empty if nothing.
    """

    measure: Measure
    value: float
    low: float | None
    high: float | None
    num_questions: int
    num_samples: int
    counts: AnswerCounts
    design_effect: float | None
    method: str
    caution: str


@dataclass(frozen=True)
class Difference:
    """One figure of an arm minus that of the base, on the questions that both answered.

    Attributes:
        measure: what is compared, with its settings.
        value: arm minus base, in the measure's unit (percentage points).
        low: of the 95 % interval; None as in `Estimate`.
        high: likewise.
        p_value: two-sided, of exchanging the arms question by question. It needs no assumption on
            distributions, but with C questions it cannot be below 2^(1-C).
        p_holm: adjusted for the number of arms in a table; None for a single comparison.
        arm: the arm's figure on these questions.
        base: the base's figure on these questions.
        num_questions: questions that both have values for.
        only_arm: ids of questions that the base has no value for; they are left out.
        only_base: ids of questions that the arm has no value for; they are left out.
        method: how the interval was made, in words.
    """

    measure: Measure
    value: float
    low: float | None
    high: float | None
    p_value: float
    p_holm: float | None
    arm: Estimate
    base: Estimate
    num_questions: int
    only_arm: tuple[str, ...]
    only_base: tuple[str, ...]
    method: str


@dataclass(frozen=True)
class EMF1:
    """EM-F1 of one arm, percent, with the scores it is made of."""

    value: float
    low: float
    high: float
    general: Estimate
    in_domain: Estimate


@dataclass(frozen=True)
class EMF1Difference:
    """EM-F1 of an arm minus that of the base; fields as in `Difference`."""

    value: float
    low: float
    high: float
    p_value: float
    general: Difference
    in_domain: Difference
    p_holm: float | None = None


@dataclass(frozen=True)
class SensitivityRow:
    """EM rate at one pair of thresholds by one judge; no estimate if no answer is left."""

    measure: EMRate
    estimate: Estimate | None
    counts: AnswerCounts
