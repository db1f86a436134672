"""Arms, read from Inspect's logs, and whether they can be compared.

One log or folder of logs is one arm. Arms compare with the same questions and the same judges.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from treft.answers.detectors import count_words
from treft.answers.logs import Run, RunInfo, find_logs, read_run
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


SETS = {"em_general": GENERAL, "em_in_domain": IN_DOMAIN}
"""Question set by task; other tasks lend it their name."""

SAMPLING = ("temperature", "top_p", "top_k", "max_tokens")
"""What the arms' answers should be sampled with alike."""

OF_NO_ACCOUNT = ("batch_size", "device")
"""Arguments of a model that may differ between the logs of one arm."""


def read_arms(
    paths: Sequence[Path], labels: Sequence[str] = (), *, partial: bool = False
) -> list[ArmAnswers]:
    """Read the arms.

    Args:
        paths: a log, or a folder of one model's logs, for each arm.
        labels: as many names; by default those of folders, and of the model for a log.
        partial: take unfinished or failed runs, too.

    Raises:
        ConfigError: there are more or fewer labels than paths, or two arms have one label.
        DataError: a log cannot be used or is not scored, a folder holds logs of several models, or
            two of its logs answer the same questions.
    """
    if labels and len(labels) != len(paths):
        raise ConfigError(
            f"{len(labels)} labels for {len(paths)} runs; give one --label a run, or none"
        )
    arms = []
    for index, path in enumerate(paths):
        runs = [read_run(log, partial=partial, need_scores=True) for log in find_logs([path])]
        _check_one_model(path, runs)
        label = labels[index] if labels else _label(path, runs[0].info)
        sources = tuple(_source(run.info) for run in runs)
        arms.append(ArmAnswers(label, _sets(path, runs), sources))
    names = [arm.label for arm in arms]
    if len(set(names)) < len(names):
        raise ConfigError(f"two runs are called alike ({', '.join(names)}); name each with --label")
    return arms


def doubts(arms: Sequence[ArmAnswers]) -> list[str]:
    """Returns notes on failed samples, unfinished runs, and arms that were sampled unlike."""
    notes = _unlike_sampling(arms)
    for arm in arms:
        for source in arm.sources:
            if source["num_failed"]:
                notes.append(
                    f"{arm.label}, {source['task']}: {source['num_failed']} samples failed and "
                    f"have no answer; the figures are about the other {source['num_answers']}"
                )
            if source["status"] != "success":
                notes.append(f"{arm.label}, {source['task']}: the run is {source['status']}")
    return notes


def _unlike_sampling(arms: Sequence[ArmAnswers]) -> list[str]:
    """Settings of generation in which the arms' logs of one task differ, but for the seed."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for arm in arms:
        for source in arm.sources:
            for name in SAMPLING:
                value = str(source.get("generation", {}).get(name, "unset"))
                found.setdefault((source["task"], name), {})[arm.label] = value
    return [
        f"{task}: {name} differs ({', '.join(f'{arm} {one}' for arm, one in values.items())})"
        for (task, name), values in found.items()
        if len(set(values.values())) > 1
    ]


def question_set(task: str, task_args: Mapping[str, Any], scope: str) -> str:
    """Returns the name of what was asked, which answers must share to be compared.

    Args:
        task: name of the task.
        task_args: its arguments.
        scope: of the sample.
    """
    name = task.rsplit("/", 1)[-1]
    if name in SETS:
        variant = task_args.get("variant") or "plain"
        return SETS[name] if variant == "plain" else f"{SETS[name]}/{variant}"
    if name == "behaviour":
        return f"{task_args.get('kind')}/{scope}"
    return name


def _sets(path: Path, runs: Sequence[Run]) -> dict[str, list[ScoredAnswer]]:
    sets: dict[str, list[ScoredAnswer]] = {}
    files: dict[tuple[str, str], str] = {}
    for run in runs:
        for answer in run.answers:
            scope = str(answer.metadata.get("scope", ""))
            name = question_set(run.info.task, run.info.task_args, scope)
            other = files.setdefault((name, answer.question_id), run.info.file)
            if other != run.info.file:
                raise DataError(
                    f"{path}: {other} and {run.info.file} both answer {name} question "
                    f"{answer.question_id!r}. One RUN is one arm: give each log as a RUN of its "
                    "own, or only the judged copy; for more samples use Inspect's --epochs."
                )
            is_open = name.split("/")[0] in SETS.values()
            sets.setdefault(name, []).append(_with_words(answer) if is_open else answer)
    return sets


def _with_words(answer: ScoredAnswer) -> ScoredAnswer:
    """Returns the answer with its number of words, which needs no detector in the log."""
    if "words" in answer.behaviours:
        return answer
    words = float(count_words(answer.answer))
    return dataclasses.replace(answer, behaviours={**answer.behaviours, "words": words})


def _check_one_model(path: Path, runs: Sequence[Run]) -> None:
    first = runs[0].info
    for run in runs[1:]:
        if _model(run.info) != _model(first):
            raise DataError(
                f"{path}: {first.file} and {run.info.file} are of different models "
                f"({_named(first)} and {_named(run.info)}). One RUN is one arm: give each its own "
                "log or folder."
            )


def _model(info: RunInfo) -> tuple[str, dict[str, Any]]:
    kept = {key: value for key, value in info.model_args.items() if key not in OF_NO_ACCOUNT}
    return info.model, kept


def _named(info: RunInfo) -> str:
    arguments = ", ".join(f"{key}={value}" for key, value in info.model_args.items())
    return f"{info.model} with {arguments}" if arguments else info.model


def _label(path: Path, info: RunInfo) -> str:
    return path.resolve().name if path.is_dir() else _named(info)


def _source(info: RunInfo) -> dict[str, Any]:
    """Returns what the report says of a log: everything but empty fields."""
    return {key: value for key, value in dataclasses.asdict(info).items() if value not in ("", {})}
