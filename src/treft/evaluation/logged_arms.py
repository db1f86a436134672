"""The arms of a comparison, read from Inspect's logs: one log or folder of logs is one arm."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from treft.answers.detectors import count_words
from treft.answers.logs import Run, RunInfo, find_logs, read_run
from treft.errors import ConfigError, DataError
from treft.evaluation.comparable import GENERAL, IN_DOMAIN, ArmAnswers
from treft.statistics.records import ScoredAnswer

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
