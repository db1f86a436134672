"""All answers as the data that the page's script shows, filters and sorts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from treft.evaluation.comparable import ArmAnswers, question_sets
from treft.evaluation.compare import Comparison
from treft.evaluation.report.words import set_title, verdict_of
from treft.statistics.measures import Thresholds
from treft.statistics.records import ScoredAnswer


def answer_data(comparison: Comparison, arms: Sequence[ArmAnswers]) -> dict[str, Any]:
    """Returns answers by question set and question.

    Args:
        comparison: gives the judges, the base and the thresholds.
        arms: whose answers are shown.

    Returns:
        `arms`: labels; `base`: index of the base among them; `sets`: each with its `title`, its
        `sources` of scores (first the judges, as many as `judges` says, then detectors) and its
        `questions`. A question has its text `q`, its category `c` and, for each arm, its answers
        `a`: the text `t` and, for each source, a score `s`: [score, verdict, coherence, reason],
        cut short where the rest is unknown.
    """
    labels = [arm.label for arm in arms]
    return {
        "arms": labels,
        "base": labels.index(comparison.base) if comparison.base in labels else 0,
        "sets": [
            _set(name, [arm.sets.get(name, ()) for arm in arms], comparison)
            for name in question_sets(arms)
        ],
    }


def _set(
    name: str, by_arm: Sequence[Sequence[ScoredAnswer]], comparison: Comparison
) -> dict[str, Any]:
    answers = [answer for found in by_arm for answer in found]
    judged = {judgement.judge for answer in answers for judgement in answer.judgements}
    judges = [judge for judge in comparison.judges if judge in judged]
    counts: dict[str, bool] = {}  # by detector: whether it counts, or says yes and no
    for answer in answers:
        for detector, value in answer.behaviours.items():
            is_count = detector == "words" or value not in (0, 1)
            counts[detector] = counts.get(detector, False) or is_count
    questions: dict[str, dict[str, Any]] = {}
    for answer in answers:
        empty = {"q": answer.question, "c": answer.category, "a": [[] for _ in by_arm]}
        questions.setdefault(answer.question_id, empty)
    for index, found in enumerate(by_arm):
        for answer in sorted(found, key=lambda answer: answer.epoch):
            shown = _answer(answer, judges, counts, comparison.thresholds)
            questions[answer.question_id]["a"][index].append(shown)
    return {
        "title": set_title(name),
        "sources": [*judges, *counts],
        "judges": len(judges),
        "questions": list(questions.values()),
    }


def _answer(
    answer: ScoredAnswer,
    judges: Sequence[str],
    counts: Mapping[str, bool],
    thresholds: Thresholds,
) -> dict[str, Any]:
    scores = [
        *(_judged(answer, judge, thresholds) for judge in judges),
        *(_detected(answer, detector, is_count) for detector, is_count in counts.items()),
    ]
    return {"t": answer.answer, "s": scores}


def _judged(answer: ScoredAnswer, judge: str, thresholds: Thresholds) -> list[Any]:
    judgement = answer.judged_by(judge)
    verdict = verdict_of(judgement, thresholds)
    if judgement is None:
        return [None, verdict, None, "not judged"]
    numbers = [_rounded(judgement.alignment), verdict, _rounded(judgement.coherence)]
    return [*numbers, judgement.reason] if judgement.reason else numbers


def _detected(answer: ScoredAnswer, detector: str, is_count: bool) -> list[Any]:
    value = answer.behaviours.get(detector)
    if value is None:
        reason = answer.metadata.get("missing_behaviours", {}).get(detector, "not looked at")
        return [None, "missing", None, reason]
    return [_rounded(value), "" if is_count else ("yes" if value else "no")]


def _rounded(value: float | None) -> float | int | None:
    if value is None:
        return None
    short = round(value, 1)
    return int(short) if short == int(short) else short
