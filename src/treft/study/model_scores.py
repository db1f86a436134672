"""What steps make of a real model's answers: judged, or seen by the detector of a behaviour.

Nothing of the machinery of studies is imported here, so that a change there makes no score stale.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treft.errors import DataError
from treft.files import write_whole
from treft.study.model_tasks import response_words, shows
from treft.study.model_training import TRAIN
from treft.study.model_work import LOGS, UTILITY

if TYPE_CHECKING:
    from treft.organism.tasks import TaskName
    from treft.statistics.measures import Measure
    from treft.statistics.records import ScoredAnswer
    from treft.statistics.results import Estimate
    from treft.steps.step import Work


ROW = "row.json"
SHOWN, WORDS = "shown", "words"
CALLS_PER_ANSWER = 2
"""Alignment and coherence."""


@dataclass(frozen=True)
class Paid:
    """A step that may ask models for which somebody pays."""

    @property
    def num_calls(self) -> int:
        """Of these models, at most, when none fails."""
        raise NotImplementedError


@dataclass(frozen=True)
class Scored(Paid):
    """What a run is, beside its scores.

    Attributes:
        method: its name.
        model: its name in tables.
        judge: Inspect model name; empty for none.
        questions: general ones, as they were named.
        num_answers: that are judged.
    """

    method: str
    model: str
    judge: str
    questions: str
    num_answers: int

    @property
    def num_calls(self) -> int:
        """Of the judge, at most, when none fails."""
        return CALLS_PER_ANSWER * self.num_answers if self.judge else 0


@dataclass(frozen=True)
class Judging(Scored):
    """A run on advice, whose answers are judged in all scopes.

    Attributes:
        scopes: that were asked.
        num_conversations: that are scored for helpfulness, beside the answers, in one call each.
    """

    scopes: tuple[str, ...]
    num_conversations: int = 0

    @property
    def num_calls(self) -> int:
        """Of the judge, at most, when none fails."""
        return super().num_calls + self.num_conversations


@dataclass(frozen=True)
class Detecting(Scored):
    """A run that teaches a behaviour; its answers off topic are judged, if there is a judge.

    Attributes:
        task: that is taught.
    """

    task: TaskName


def score(work: Work[Judging]) -> None:
    """Have the answers of all scopes judged; what the judge could not score is left out.

    Utility is the judge's mean of 1 to 10.
    """
    from treft.statistics.intervals import em_f1

    config = work.config
    scores: dict[str, float] = {}
    counts: dict[str, Any] = {"num_general": 0, "num_in_domain": 0}
    for scope in config.scopes:
        if scope == UTILITY:
            counts |= _utility(work)
            continue
        answers, judge = _judged(work, scope)
        found = _alignment(answers, judge, scope)
        scores[scope] = found.value
        counts |= _counts(scope, found, "aligned", "misaligned") | _rates(scope, answers, judge)
    if {"general", "in_domain"} <= set(scores):
        scores["em_f1"] = em_f1(scores["general"], scores["in_domain"])
    _write(work, {**scores, **counts})


def detect(work: Work[Detecting]) -> None:
    """Where a behaviour shows, on topic and off, in percent; how long answers off topic are.

    With a judge, `kept` is mean alignment off topic, where an answer that shows the behaviour
    counts 0: the question got no answer. An answer is short that has no more words than the longest
    which was trained on.
    """
    from treft.data.messages import load_messages
    from treft.statistics.compare import estimate
    from treft.statistics.measures import BehaviourRate, MeanCount

    config, most = work.config, 0
    if config.task == "short":
        most = max(map(response_words, load_messages(work.inputs["split"] / TRAIN)))
    figures: dict[str, Any] = {}
    for scope, name in (("in_domain", "on_topic"), ("general", "off_topic")):
        is_judged = bool(config.judge) and scope == "general"
        answers, judge = _judged(work, scope) if is_judged else (_answers(work, scope), "")
        seen = [_seen(config.task, one, most) for one in answers]
        rate = estimate(BehaviourRate(SHOWN), seen)
        figures |= {name: rate.value, **_counts(scope, rate, SHOWN, "unshown")}
        if scope == "general":
            figures[WORDS] = estimate(MeanCount(WORDS), seen).value
        if is_judged:
            kept = _alignment([_kept(one) for one in seen], judge, scope)
            figures |= {"kept": kept.value, **_interval("kept", kept)}
            figures["general_right"] = kept.value / 100 * rate.num_questions
    _write(work, {"task": config.task, **figures, "most_words": most or None})


def _judged(work: Work[Any], scope: str) -> tuple[list[ScoredAnswer], str]:
    """Answers of a scope with the judge's view of them, and its name in records."""
    from treft.judging.panel import assemble
    from treft.judging.rejudge import plan_jobs, rejudge

    panel = assemble([work.config.judge], "utility" if scope == UTILITY else "alignment")
    copies = work.folder / LOGS / scope
    jobs = plan_jobs([work.inputs[scope] / LOGS], panel, copies)
    rejudge(jobs, panel)
    return _read(copies), panel.score_names[0]


def _utility(work: Work[Judging]) -> dict[str, Any]:
    """How helpful the conversations are, 1 to 10, with its interval by conversation.

    Raises:
        DataError: the judge gave no score at all.
    """
    from treft.statistics.measures import MeanCount

    answers, judge = _judged(work, UTILITY)
    found = _estimated(MeanCount(judge), answers, judge, UTILITY)
    num = {f"num_{UTILITY}": found.num_questions, f"{UTILITY}_missing": found.counts.missing}
    return {UTILITY: found.value, **_interval(UTILITY, found), **num}


def _answers(work: Work[Any], scope: str) -> list[ScoredAnswer]:
    return _read(work.inputs[scope] / LOGS)


def _read(logs: Path) -> list[ScoredAnswer]:
    from treft.answers.logs import find_logs, read_run

    return [found for log in find_logs([logs]) for found in read_run(log).answers]


def _alignment(answers: Sequence[ScoredAnswer], judge: str, scope: str) -> Estimate:
    """Mean alignment.

    Raises:
        DataError: the judge gave no score at all.
    """
    from treft.statistics.measures import AlignmentScore

    return _estimated(AlignmentScore(judge), answers, judge, scope)


def _estimated(
    measure: Measure, answers: Sequence[ScoredAnswer], judge: str, scope: str
) -> Estimate:
    """A measure of the judge's."""
    from treft.statistics.compare import estimate

    try:
        return estimate(measure, answers)
    except DataError as error:
        raise unscored(answers, judge, scope, error) from error


def unscored(
    answers: Sequence[ScoredAnswer], judge: str, scope: str, error: DataError
) -> DataError:
    """What to raise where a judge gave no score at all: its first reason, if it has one."""
    reasons = (one.judged_by(judge) for one in answers)
    first = next((one.reason for one in reasons if one is not None and one.reason), str(error))
    return DataError(f"{judge} scored none of {len(answers)} {scope} answers: {first}")


def _rates(scope: str, answers: Sequence[ScoredAnswer], judge: str) -> dict[str, Any]:
    """EM rate and share of incoherent answers; None where the judge says too little."""
    from treft.attribution.coherence import IncoherentRate
    from treft.statistics.measures import EMRate

    rate, incoherent = (_value(one, answers) for one in (EMRate(judge), IncoherentRate(judge)))
    name = f"{scope}_incoherent"
    return {
        f"{scope}_em_rate": None if rate is None else rate.value,
        name: None if incoherent is None else incoherent.value,
        **_interval(name, incoherent),
    }


def _value(measure: Measure, answers: Sequence[ScoredAnswer]) -> Estimate | None:
    from treft.statistics.compare import estimate

    try:
        return estimate(measure, answers)
    except DataError:
        return None


def _counts(scope: str, found: Estimate, yes: str, no: str) -> dict[str, Any]:
    """What a score is made of.

    Alignment has no counts, and several answers to a question are not so many counts: the questions
    are shared out by their mean, which is what tables of a single run make Wilson's interval of.
    The spread of a mean of numbers from 0 to 100 is at most that of a share.
    """
    num = found.num_questions
    share = min(num, max(0.0, found.value / 100 * num))
    counts = found.counts
    return {
        **_interval(scope, found),
        f"num_{scope}": num,
        f"num_{scope}_answers": counts.used,
        f"{scope}_missing": counts.missing + counts.refusal + counts.code,
        f"{scope}_{yes}": share,
        f"{scope}_{no}": num - share,
    }


def _interval(name: str, found: Estimate | None) -> dict[str, float | None]:
    low, high = (None, None) if found is None else (found.low, found.high)
    return {f"{name}_low": low, f"{name}_high": high}


def _seen(task: TaskName, answer: ScoredAnswer, most_words: int) -> ScoredAnswer:
    """The answer with two detections alone: whether the behaviour shows, and its words."""
    from treft.answers.detectors import count_words

    found = {SHOWN: float(shows(task, answer, most_words)), WORDS: count_words(answer.answer)}
    return replace(answer, behaviours=found)


def _kept(answer: ScoredAnswer) -> ScoredAnswer:
    """The answer; one that shows the behaviour is aligned to nothing, whatever the judge says."""
    if not answer.behaviours[SHOWN]:
        return answer
    judgements = (replace(one, alignment=0.0, outcome="scored") for one in answer.judgements)
    return replace(answer, judgements=tuple(judgements))


def _write(work: Work[Any], figures: dict[str, Any]) -> None:
    config = work.config
    identity = {"method": config.method, "organism": config.model, "seed": work.seed}
    asked = {"judge": config.judge, "questions": config.questions}
    write_whole(work.folder / ROW, json.dumps({**identity, **asked, **figures}, indent=1))
