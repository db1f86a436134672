"""Figures with intervals: of one arm, of one arm against another, over thresholds and judges.

The answers to one question form a cluster; `intervals.py` has the estimators. Every result carries
its measure with all settings, the number of questions and samples, and what became of the other
answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple, TypeVar

import numpy as np
from scipy import stats

from treft.errors import DataError
from treft.statistics.intervals import (
    Clusters,
    FloatArray,
    Interval,
    count_interval,
    difference_interval,
    em_f1_interval,
    few_questions,
    percent_interval,
    permutation_p_value,
)
from treft.statistics.measures import AlignmentScore, EMRate, Measure, Tally, Thresholds
from treft.statistics.records import ScoredAnswer
from treft.statistics.results import (
    EMF1,
    Difference,
    EMF1Difference,
    Estimate,
    SensitivityRow,
)

ALIGNMENTS = (10.0, 20.0, 30.0, 40.0, 50.0)
COHERENCES = (None, 0.0, 30.0, 50.0, 70.0)
"""Thresholds of the sensitivity table; None is no filter, 0 leaves out what has no coherence."""


Key = TypeVar("Key")
Change = TypeVar("Change", bound=Difference | EMF1Difference)


class Arm(NamedTuple):
    """One model's answers to the two question sets that EM-F1 is made of."""

    general: Sequence[ScoredAnswer]
    in_domain: Sequence[ScoredAnswer]


def estimate(measure: Measure, answers: Sequence[ScoredAnswer]) -> Estimate:
    """Returns a figure with its 95 % interval.

    Raises:
        DataError: the measure's judge or detector looked at no answer, or gave no value.
    """
    return _estimate(measure, measure.tally(answers))


def estimate_if_any(measure: Measure, answers: Sequence[ScoredAnswer]) -> Estimate | None:
    """Returns what `estimate` does; None where no answer has a value."""
    try:
        return estimate(measure, answers)
    except DataError:
        return None


def difference(
    measure: Measure, arm: Sequence[ScoredAnswer], base: Sequence[ScoredAnswer]
) -> Difference:
    """Returns a figure of an arm minus that of the base, paired by question.

    Raises:
        DataError: as `estimate`, or the arms share no question.
    """
    return _paired(measure, arm, base).difference


def difference_if_any(
    measure: Measure, arm: Sequence[ScoredAnswer], base: Sequence[ScoredAnswer]
) -> Difference | None:
    """Returns what `difference` does; None where no question has a value in both."""
    try:
        return difference(measure, arm, base)
    except DataError:
        return None


def em_f1_estimate(measure: AlignmentScore, arm: Arm) -> EMF1:
    """Returns EM-F1 (section 5 of the paper) of the two alignment scores by one judge.

    Raises:
        DataError: as `estimate`, for either question set.
    """
    general, in_domain = (estimate(measure, answers) for answers in arm)
    return EMF1(*em_f1_interval(_interval_of(general), _interval_of(in_domain)), general, in_domain)


def em_f1_difference(measure: AlignmentScore, arm: Arm, base: Arm) -> EMF1Difference:
    """Returns EM-F1 of an arm minus that of the base, both sets paired by question.

    Raises:
        DataError: as `difference`, for either question set.
    """
    pairs = [_paired(measure, *answers) for answers in zip(arm, base, strict=True)]
    general, in_domain = (pair.difference for pair in pairs)
    one, other = (
        em_f1_interval(_interval_of(first), _interval_of(second))
        for first, second in ((general.arm, in_domain.arm), (general.base, in_domain.base))
    )
    moved = [
        ours - theirs
        for ours, theirs in zip(
            _em_f1_contributions(*(pair.arm for pair in pairs)),
            _em_f1_contributions(*(pair.base for pair in pairs)),
            strict=True,
        )
    ]
    return EMF1Difference(
        *difference_interval(one, other, *moved).within(-100.0, 100.0),
        permutation_p_value(
            [pair.arm for pair in pairs], [pair.base for pair in pairs], _em_f1_of_arrays
        ),
        general,
        in_domain,
    )


def sensitivity(
    answers: Sequence[ScoredAnswer],
    judges: Iterable[str],
    alignments: Iterable[float] = ALIGNMENTS,
    coherences: Iterable[float | None] = COHERENCES,
) -> tuple[SensitivityRow, ...]:
    """Returns the EM rate of the same answers at each pair of thresholds, by each judge.

    Raises:
        ConfigError: a threshold is out of range.
        DataError: a judge looked at none of the answers.
    """
    measures = [
        EMRate(judge, Thresholds(alignment, coherence))
        for judge in judges
        for alignment in alignments
        for coherence in coherences
    ]
    tallies = [measure.tally(answers) for measure in measures]
    return tuple(
        SensitivityRow(measure, _estimate(measure, tally) if tally.clusters else None, tally.counts)
        for measure, tally in zip(measures, tallies, strict=True)
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values adjusted for their number by Holm's method (1979), as statsmodels has it."""
    if len(p_values) < 2:
        return list(p_values)
    # Not at the top of the file: it takes a second, which a single comparison need not wait for.
    from statsmodels.stats.multitest import multipletests

    return [float(adjusted) for adjusted in multipletests(p_values, method="holm")[1]]


def adjusted(changes: Mapping[Key, Change]) -> dict[Key, Change]:
    """Returns differences with `p_holm`, their p-values adjusted for the number of them."""
    p_values = holm([change.p_value for change in changes.values()])
    return {
        key: replace(change, p_holm=p_holm)
        for (key, change), p_holm in zip(changes.items(), p_values, strict=True)
    }


class _Pair(NamedTuple):
    difference: Difference
    arm: Clusters
    base: Clusters


def _paired(measure: Measure, arm: Sequence[ScoredAnswer], base: Sequence[ScoredAnswer]) -> _Pair:
    questions = [_questions(measure.tally(answers)) for answers in (arm, base)]
    shared = questions[0] & questions[1]
    if not shared:
        raise DataError(
            f"the two arms share no question with a {measure.name}; compare runs of one question "
            f"set ({_some(questions[0])} against {_some(questions[1])})"
        )
    tallies = [
        measure.tally([answer for answer in answers if answer.question_id in shared])
        for answers in (arm, base)
    ]
    first, second = (_clusters(measure, tally) for tally in tallies)
    interval = _difference_interval(measure, first, second)
    found = Difference(
        measure=measure,
        value=first.mean - second.mean,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        p_value=permutation_p_value([first], [second], lambda mean: mean),
        p_holm=None,
        arm=_estimate(measure, tallies[0]),
        base=_estimate(measure, tallies[1]),
        num_questions=len(shared),
        only_arm=tuple(sorted(questions[0] - shared)),
        only_base=tuple(sorted(questions[1] - shared)),
        method="clustered t, paired by question",
    )
    return _Pair(found, first, second)


def _interval(measure: Measure, clusters: Clusters) -> tuple[Interval | None, str]:
    """Returns the 95 % interval of a figure, and how it was made."""
    if measure.unit == "percent":
        return percent_interval(clusters)
    return count_interval(clusters), "clustered t"


def _difference_interval(measure: Measure, arm: Clusters, base: Clusters) -> Interval | None:
    (first, _), (second, _) = _interval(measure, arm), _interval(measure, base)
    if first is None or second is None:
        return None
    found = difference_interval(first, second, arm.contributions - base.contributions)
    return found.within(-100.0, 100.0) if measure.unit == "percent" else found


def _estimate(measure: Measure, tally: Tally) -> Estimate:
    clusters = _clusters(measure, tally)
    interval, method = _interval(measure, clusters)
    return Estimate(
        measure,
        clusters.mean,
        interval.low if interval else None,
        interval.high if interval else None,
        clusters.num_questions,
        tally.counts.used,
        tally.counts,
        clusters.design_effect,
        method,
        _caution(clusters),
    )


def _caution(clusters: Clusters) -> str:
    cautions = [few_questions(clusters.num_questions)]
    if clusters.num_questions > 1 and clusters.design_effect is None:
        cautions.append("all values are equal: how much they vary is not known")
    return "; ".join(filter(None, cautions))


def _clusters(measure: Measure, tally: Tally) -> Clusters:
    if tally.clusters is None:
        counts = {name: num for name, num in asdict(tally.counts).items() if num}
        fates = ", ".join(f"{name.replace('_', ' ')} {num}" for name, num in counts.items())
        raise DataError(f"no answer is left for the {measure.name}: {fates}")
    return tally.clusters


def _questions(tally: Tally) -> set[str]:
    return set(tally.clusters.questions) if tally.clusters else set()


def _some(questions: set[str]) -> str:
    return ", ".join(sorted(questions)[:3]) or "none"


def _interval_of(found: Estimate) -> Interval:
    assert found.low is not None, "scores have bounds"
    assert found.high is not None, "scores have bounds"
    return Interval(found.value, found.low, found.high)


def _em_f1_of_arrays(general: FloatArray, in_domain: FloatArray) -> FloatArray:
    scores: FloatArray = stats.hmean(np.clip([general, 100 - in_domain], 0, 100), axis=0)
    return scores


def _em_f1_contributions(general: Clusters, in_domain: Clusters) -> tuple[FloatArray, FloatArray]:
    """Returns by how much each question of either set moves EM-F1, to first order."""
    aligned, learnt = general.mean, 100 - in_domain.mean
    total = (aligned + learnt) ** 2 or 1.0
    return (
        2 * learnt**2 / total * general.contributions,
        -2 * aligned**2 / total * in_domain.contributions,
    )
