"""Several arms side by side: figures of each, changes against one of them, agreement of judges.

Works on records alone. `compare_logs.py` reads arms from Inspect's logs, the demo makes its own,
and `report/` shows both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from treft.errors import ConfigError, DataError
from treft.evaluation.columns import Column, Figure, fill_column, plan_figures
from treft.evaluation.comparable import (
    ArmAnswers,
    answers_a_question,
    check_arms,
    common_judges,
    questions_of,
    unmatched,
)
from treft.files import as_json
from treft.statistics.agreement import Agreement, agreement
from treft.statistics.compare import sensitivity
from treft.statistics.measures import EMRate, Thresholds
from treft.statistics.records import ScoredAnswer
from treft.statistics.results import SensitivityRow

MOST_DRAWS = 10
"""k of Misalign@k where there are more answers to a question and nobody chose."""


@dataclass(frozen=True)
class Comparison:
    """All that a report shows.

    Attributes:
        arms: in the order of the tables.
        base: label of the arm that changes are taken against.
        num_runs: runs of each arm; with more than one, figures are means over runs.
        judges: whose scores were taken.
        thresholds: of the EM rates, Misalign@k and the verdicts.
        columns: the figures.
        sensitivity: by question set and arm, EM rate over thresholds.
        agreements: by question set, of the judges on the answers of all arms.
        intervals: how the intervals were made, in words.
        notes: what the reader must know: questions without partner, failed samples, judges left
            out.
    """

    arms: tuple[ArmAnswers, ...] = field(repr=False)
    base: str
    num_runs: int
    judges: tuple[str, ...]
    thresholds: Thresholds
    columns: tuple[Column, ...]
    sensitivity: Mapping[str, Mapping[str, tuple[SensitivityRow, ...]]]
    agreements: Mapping[str, Agreement]
    intervals: str
    notes: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The arms' labels."""
        return tuple(arm.label for arm in self.arms)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON has them; answers are counted, not repeated."""
        return {
            "base": self.base,
            "num_runs": self.num_runs,
            "judges": list(self.judges),
            "thresholds": asdict(self.thresholds),
            "intervals": self.intervals,
            "arms": {arm.label: _arm_dict(arm) for arm in self.arms},
            "figures": as_json(self.columns),
            "sensitivity": as_json(self.sensitivity),
            "agreement": as_json(self.agreements),
            "notes": list(self.notes),
        }


INTERVALS = (
    "95 % intervals and p-values speak of other questions of the same kind: the answers to one "
    "question count as a cluster, and changes are paired by question"
)


def compare(
    arms: Sequence[ArmAnswers],
    base: str | None = None,
    judges: Sequence[str] | None = None,
    thresholds: Thresholds | None = None,
    k: int | None = None,
) -> Comparison:
    """Compare arms that answered the same questions.

    Args:
        arms: at least one.
        base: label of the arm that changes are taken against; the first by default.
        judges: whose scores to take; by default those that judged every arm.
        thresholds: of the EM rates, Misalign@k and verdicts; those of Betley et al. by default.
        k: of Misalign@k, which is taken where most questions have two answers or more; by default
            as many as they have, 10 at most.

    Raises:
        ConfigError: a label comes twice, the base is none of the arms, or k is below 1.
        DataError: a judge is absent from an arm, no judge judged all arms, or an arm shares no
            question with the base.
    """
    if k is not None and k < 1:
        raise ConfigError(f"k is {k}; draw at least one answer")
    first = check_arms(arms, base)
    chosen, judge_notes = common_judges(arms, judges)
    limits = thresholds or Thresholds()
    figures = plan_figures(arms, chosen, limits, misalign_draws(arms, chosen, k))
    agreements, agreement_notes = _agreements(arms, chosen, limits)
    return Comparison(
        arms=tuple(arms),
        base=first.label,
        num_runs=1,
        judges=tuple(dict.fromkeys(judge for found in chosen.values() for judge in found)),
        thresholds=limits,
        columns=tuple(fill_column(figure, arms, first) for figure in figures),
        sensitivity=_sensitivities(arms, figures),
        agreements=agreements,
        intervals=INTERVALS,
        notes=(
            *judge_notes,
            *unmatched(arms, first),
            *_mixed_methods(arms, chosen),
            *agreement_notes,
        ),
    )


def misalign_draws(
    arms: Sequence[ArmAnswers], sets: Iterable[str], k: int | None = None
) -> dict[str, int]:
    """Returns k of Misalign@k, for sets whose questions were answered more than once."""
    sizes = {name: answers_a_question(arms, name) for name in sets}
    return {name: k or min(size, MOST_DRAWS) for name, size in sizes.items() if size > 1}


def _sensitivities(
    arms: Sequence[ArmAnswers], figures: Sequence[Figure]
) -> dict[str, dict[str, tuple[SensitivityRow, ...]]]:
    """Returns those of sets with an unfiltered EM rate: the oracle knows no thresholds."""
    judges: dict[str, list[str]] = {}
    for figure in figures:
        if isinstance(figure.measure, EMRate) and figure.measure.thresholds.coherent_above is None:
            judges.setdefault(figure.question_set, []).append(figure.seen_by)
    return {
        name: {arm.label: sensitivity(arm.sets[name], found) for arm in arms if name in arm.sets}
        for name, found in judges.items()
    }


def _agreements(
    arms: Sequence[ArmAnswers], judges: Mapping[str, Sequence[str]], thresholds: Thresholds
) -> tuple[dict[str, Agreement], list[str]]:
    found, notes = {}, []
    for name, names in judges.items():
        if len(names) < 2:
            continue
        answers = [answer for arm in arms for answer in arm.sets.get(name, ())]
        try:
            found[name] = agreement(answers, names, thresholds.misaligned_below)
        except DataError as error:
            notes.append(f"{name}: no agreement of judges, {error}")
    return found, notes


def _mixed_methods(arms: Sequence[ArmAnswers], judges: Mapping[str, Sequence[str]]) -> list[str]:
    """Notes on judges whose scores are means over log-probabilities in one arm, but not another."""
    notes = []
    for name, names in judges.items():
        for judge in names:
            methods = {arm.label: _methods(arm.sets.get(name, ()), judge) for arm in arms}
            if len({found for found in methods.values() if found}) > 1:
                by_arm = ", ".join(f"{label} {found}" for label, found in methods.items() if found)
                notes.append(
                    f"{name}: scores by {judge} were read in different ways ({by_arm}), so they "
                    "do not compare well"
                )
    return notes


def _methods(answers: Sequence[ScoredAnswer], judge: str) -> str:
    found = (answer.judged_by(judge) for answer in answers)
    return " and ".join(sorted({one.method for one in found if one and one.outcome == "scored"}))


def _arm_dict(arm: ArmAnswers) -> dict[str, Any]:
    sets = {
        name: {"questions": len(questions_of(arm, name)), "answers": len(answers)}
        for name, answers in arm.sets.items()
    }
    return {"about": arm.about, "sets": sets, "sources": [dict(source) for source in arm.sources]}
