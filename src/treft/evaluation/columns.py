"""The columns of a comparison: each figure that some arms can be measured by, and its values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from treft.errors import DataError
from treft.evaluation.comparable import GENERAL, IN_DOMAIN, ArmAnswers, question_sets
from treft.files import as_json
from treft.statistics.compare import (
    Arm,
    adjusted,
    difference,
    em_f1_difference,
    em_f1_estimate,
    estimate,
)
from treft.statistics.measures import (
    AlignmentScore,
    BehaviourRate,
    EMRate,
    MeanCount,
    Measure,
    MisalignAtK,
    Thresholds,
)
from treft.statistics.results import EMF1, Difference, EMF1Difference, Estimate

Better = Literal["higher", "lower", ""]
Result = Estimate | EMF1
Change = Difference | EMF1Difference


@dataclass(frozen=True)
class SetFigure:
    """A measure of the answers to one question set.

    Attributes:
        question_set: its name.
        measure: what is measured, with its settings.
        seen_by: the judge or the detector.
        better: in which direction it is better, empty where neither is.
    """

    question_set: str
    measure: Measure
    seen_by: str
    better: Better

    @property
    def name(self) -> str:
        """The measure's name."""
        return self.measure.name

    @property
    def is_judged(self) -> bool:
        """Whether a judge of alignment sees it, not a detector."""
        return isinstance(self.measure, AlignmentScore | EMRate | MisalignAtK)

    def in_arm(self, arm: ArmAnswers) -> bool:
        """Tells whether the arm has answers to the question set."""
        return self.question_set in arm.sets

    def result(self, arm: ArmAnswers) -> Result:
        """Returns the figure of one arm.

        Raises:
            DataError: there is no value to take a mean of.
        """
        return estimate(self.measure, arm.sets[self.question_set])

    def change(self, arm: ArmAnswers, base: ArmAnswers) -> Change:
        """Returns the figure of an arm minus that of the base.

        Raises:
            DataError: as `result`, or no question has a value in both arms.
        """
        sets = (each.sets[self.question_set] for each in (arm, base))
        return difference(self.measure, *sets)


@dataclass(frozen=True)
class EMF1Figure:
    """EM-F1 by one judge; attributes as in `SetFigure`."""

    measure: AlignmentScore
    seen_by: str
    name: ClassVar[str] = "em_f1"
    question_set: ClassVar[str] = f"{GENERAL} + {IN_DOMAIN}"
    better: ClassVar[Better] = "higher"
    is_judged: ClassVar[bool] = True

    def in_arm(self, arm: ArmAnswers) -> bool:
        """Tells whether the arm has answers to both question sets."""
        return GENERAL in arm.sets and IN_DOMAIN in arm.sets

    def result(self, arm: ArmAnswers) -> Result:
        """See `SetFigure`."""
        return em_f1_estimate(self.measure, _both_sets(arm))

    def change(self, arm: ArmAnswers, base: ArmAnswers) -> Change:
        """See `SetFigure`."""
        return em_f1_difference(self.measure, _both_sets(arm), _both_sets(base))


Figure = SetFigure | EMF1Figure


@dataclass(frozen=True)
class Column:
    """One figure of all arms.

    Attributes:
        figure: what it is.
        results: by arm; arms that have none are in `absent`.
        changes: by arm, against the base, p-values adjusted for their number.
        absent: by arm, why a result or a change is not there.
    """

    figure: Figure
    results: Mapping[str, Result]
    changes: Mapping[str, Change]
    absent: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON has them."""
        return {
            "figure": self.figure.name,
            "question_set": self.figure.question_set,
            "seen_by": self.figure.seen_by,
            "better": self.figure.better,
            "results": as_json(self.results),
            "changes": as_json(self.changes),
            "absent": dict(self.absent),
        }


def plan_figures(
    arms: Sequence[ArmAnswers],
    judges: Mapping[str, Sequence[str]],
    thresholds: Thresholds,
    draws: Mapping[str, int] | None = None,
) -> tuple[Figure, ...]:
    """Returns what can be measured: judged figures first, judge by judge, then behaviours.

    Args:
        arms: at least one.
        judges: by question set.
        thresholds: of the EM rates and Misalign@k.
        draws: k of Misalign@k by question set; sets that are not named have none.
    """
    every = dict.fromkeys(judge for found in judges.values() for judge in found)
    judged = (
        figure
        for judge in every
        for figure in _judged(
            judge, arms, [name for name in judges if judge in judges[name]], thresholds, draws or {}
        )
    )
    behaviours = (figure for name in question_sets(arms) for figure in _behaviours(name, arms))
    return (*judged, *behaviours)


def _judged(
    judge: str,
    arms: Sequence[ArmAnswers],
    sets: Sequence[str],
    thresholds: Thresholds,
    draws: Mapping[str, int],
) -> Iterator[Figure]:
    score = AlignmentScore(judge)
    for name in sets:
        if name.startswith(IN_DOMAIN):
            yield SetFigure(name, score, judge, "lower")
            continue
        yield SetFigure(name, score, judge, "higher")
        yield SetFigure(name, EMRate(judge, thresholds), judge, "lower")
        # The oracle puts incoherent answers at 0, so only its filtered rate is about misalignment.
        if thresholds.coherent_above is not None and not _is_oracle(arms, name, judge):
            unfiltered = replace(thresholds, coherent_above=None)
            yield SetFigure(name, EMRate(judge, unfiltered), judge, "lower")
        if name in draws:
            yield SetFigure(name, MisalignAtK(judge, draws[name], thresholds), judge, "lower")
    if GENERAL in sets and IN_DOMAIN in sets:
        yield EMF1Figure(score, judge)


def _behaviours(name: str, arms: Sequence[ArmAnswers]) -> Iterator[Figure]:
    values: dict[str, set[float]] = {}
    for arm in arms:
        for answer in arm.sets.get(name, ()):
            for detector, value in answer.behaviours.items():
                values.setdefault(detector, set()).add(value)
    for detector, found in values.items():
        is_count = detector == "words" or not found <= {0.0, 1.0}
        measure = MeanCount(detector) if is_count else BehaviourRate(detector)
        yield SetFigure(name, measure, detector, _better(name, detector))


def _better(name: str, detector: str) -> Better:
    """Behaviours are wanted on topic and nowhere else; a length is neither good nor bad."""
    if detector == "words":
        return ""
    if name.endswith("on_topic") or detector.startswith("utility"):
        return "higher"
    return "lower" if name.endswith("off_topic") else ""


def fill_column(figure: Figure, arms: Sequence[ArmAnswers], base: ArmAnswers) -> Column:
    """Returns the figure of each arm and its change against the base."""
    results: dict[str, Result] = {}
    changes: dict[str, Change] = {}
    absent: dict[str, str] = {}
    for arm in arms:
        try:
            if not figure.in_arm(arm):
                raise DataError("not asked")
            results[arm.label] = figure.result(arm)
            if arm is not base:
                if not figure.in_arm(base):
                    raise DataError(f"{base.label} was not asked")
                changes[arm.label] = figure.change(arm, base)
        except DataError as error:
            absent[arm.label] = str(error)
    return Column(figure, results, adjusted(changes), absent)


def _both_sets(arm: ArmAnswers) -> Arm:
    return Arm(arm.sets[GENERAL], arm.sets[IN_DOMAIN])


def _is_oracle(arms: Sequence[ArmAnswers], name: str, judge: str) -> bool:
    found = (answer.judged_by(judge) for arm in arms for answer in arm.sets.get(name, ()))
    return all(judgement is None or judgement.method == "oracle" for judgement in found)
