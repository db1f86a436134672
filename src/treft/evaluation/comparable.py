"""Arms, and whether they can be compared: the same questions, the same judges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from treft.errors import ConfigError, DataError
from treft.statistics.records import ScoredAnswer

GENERAL = "general"
IN_DOMAIN = "in_domain"
"""The two question sets that EM-F1 is made of."""


@dataclass(frozen=True)
class ArmAnswers:
    """One arm: a model's answers to one or several question sets.

    Attributes:
        label: its name in tables.
        sets: answers by question set.
        sources: what is known of where they come from, one mapping a log or run.
        about: what the arm is, in words.
    """

    label: str
    sets: Mapping[str, Sequence[ScoredAnswer]] = field(repr=False)
    sources: tuple[Mapping[str, Any], ...] = ()
    about: str = ""


def answers_a_question(arms: Iterable[ArmAnswers], name: str) -> int:
    """Returns how often most questions of a set were answered, in the arm where that is least."""
    found = []
    for arm in arms:
        sizes = Counter(Counter(answer.question_id for answer in arm.sets.get(name, ())).values())
        found += [max(sizes, key=lambda size: (sizes[size], size))] if sizes else []
    return min(found, default=0)


def check_arms(arms: Sequence[ArmAnswers], base: str | None) -> ArmAnswers:
    """Returns the base, after a check that the arms can be compared with it.

    Raises:
        ConfigError: no arm, a label comes twice, or the base is none of the arms.
        DataError: an arm shares no question with the base, or asks other words by the same id.
    """
    if not arms:
        raise ConfigError("there is no arm to compare")
    labels = [arm.label for arm in arms]
    if len(set(labels)) < len(labels):
        raise ConfigError(f"two arms have one label ({', '.join(labels)}); give each its own")
    if base is not None and base not in labels:
        raise ConfigError(f"the base {base!r} is none of the arms {', '.join(labels)}")
    first = arms[labels.index(base) if base is not None else 0]
    for arm in arms:
        _check_pair(arm, first)
    return first


def common_judges(
    arms: Sequence[ArmAnswers], wanted: Sequence[str] | None
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Returns, by question set, the judges that judged it in every arm; and notes on the others.

    Raises:
        DataError: a wanted judge is absent from an arm, or a set has no judge in common.
    """
    common: dict[str, tuple[str, ...]] = {}
    notes = []
    for name in question_sets(arms):
        found = {arm.label: _judges_of(arm.sets[name]) for arm in arms if name in arm.sets}
        every = dict.fromkeys(judge for judges in found.values() for judge in judges)
        if not every:
            continue
        for judge in wanted or ():
            _check_judge(judge, name, found)
        common[name] = tuple(
            judge for judge in wanted or every if all(judge in judges for judges in found.values())
        )
        if not common[name]:
            by_arm = "; ".join(f"{arm}: {', '.join(one) or 'none'}" for arm, one in found.items())
            raise DataError(
                f"no judge judged the {name} answers of all arms ({by_arm}); add one with "
                "`treft judge`."
            )
        left_out = [judge for judge in every if judge not in common[name]] if not wanted else []
        notes += [f"{name}: {judge} is left out, it did not judge every arm" for judge in left_out]
    if wanted and not common:
        raise DataError(f"no answer is judged by anyone, so not by {wanted[0]!r}.")
    return common, notes


def _check_judge(judge: str, name: str, found: Mapping[str, tuple[str, ...]]) -> None:
    lacking = next((label for label, judges in found.items() if judge not in judges), None)
    if lacking is not None:
        known = ", ".join(found[lacking]) or "none"
        raise DataError(
            f"{lacking}: no {name} answer is judged by {judge!r} (judges: {known}); add it with "
            f"`treft judge --judge {judge}`."
        )


def question_sets(arms: Sequence[ArmAnswers]) -> tuple[str, ...]:
    """Returns the names of all sets, `general` and `in_domain` first."""
    names = dict.fromkeys(name for arm in arms for name in arm.sets)
    first = [name for name in (GENERAL, IN_DOMAIN) if name in names]
    return tuple(dict.fromkeys([*first, *names]))


def _judges_of(answers: Sequence[ScoredAnswer]) -> tuple[str, ...]:
    found = (judgement.judge for answer in answers for judgement in answer.judgements)
    return tuple(dict.fromkeys(found))


def questions_of(arm: ArmAnswers, name: str) -> dict[str, str]:
    """Returns what was asked, by id."""
    return {answer.question_id: answer.question for answer in arm.sets.get(name, ())}


def _check_pair(arm: ArmAnswers, base: ArmAnswers) -> None:
    common = [name for name in arm.sets if name in base.sets]
    if not common:
        raise DataError(
            f"{arm.label} and {base.label} answered different question sets ({_listed(arm.sets)} "
            f"against {_listed(base.sets)}): there is nothing to compare."
        )
    for name in common:
        asked, by_base = questions_of(arm, name), questions_of(base, name)
        if not asked.keys() & by_base.keys():
            raise DataError(
                f"{arm.label} and {base.label} share no {name} question ({_listed(asked)} against "
                f"{_listed(by_base)}); compare runs of one question set."
            )
        for id in asked.keys() & by_base.keys():
            if asked[id] != by_base[id]:
                raise DataError(
                    f"{name} question {id!r} is {asked[id]!r} in {arm.label}, but {by_base[id]!r} "
                    f"in {base.label}; compare runs of one question set."
                )


def unmatched(arms: Sequence[ArmAnswers], base: ArmAnswers) -> Iterator[str]:
    """Yields notes on questions that only one of two arms answered."""
    for arm in arms:
        for name in arm.sets:
            asked, by_base = questions_of(arm, name), questions_of(base, name)
            if not by_base:
                continue
            for one, other, label in ((asked, by_base, arm.label), (by_base, asked, base.label)):
                if alone := [id for id in one if id not in other]:
                    yield (
                        f"{name}: {len(alone)} of {len(one)} questions only in {label} when "
                        f"{arm.label} is compared with {base.label} ({_listed(alone)}); changes "
                        "leave them out"
                    )


def _listed(names: Iterable[str], most: int = 3) -> str:
    found = list(names)
    more = f", and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more if found else "none"
