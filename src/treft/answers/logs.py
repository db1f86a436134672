"""Inspect's logs as records: one `ScoredAnswer` for each answer, and what is known of the run.

Keys of the environment are kept out of what is written from them (`without_secrets`).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote, urlparse

from inspect_ai.log import EvalLog, EvalSample, list_eval_logs, read_eval_log
from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageUser, ModelOutput
from inspect_ai.scorer import Score

from treft.answers.parsing import Turn
from treft.errors import DataError
from treft.statistics.records import Judgement, Method, Outcome, ScoredAnswer

_OWN_FIELDS = ("question_id", "category")
"""Fields of a sample's metadata that have a place of their own in a record."""


@dataclass(frozen=True)
class RunInfo:
    """Where answers come from.

    Attributes:
        file: the log.
        model: Inspect model name.
        model_args: of the provider: adapter, patched regions and so on.
        task: the task's name.
        task_args: as given or by default.
        dataset: its name.
        created: when, ISO 8601.
        status: `success`, or another of Inspect's when an unfinished log was asked for.
        epochs: samples a question.
        generation: what was set of temperature, seed, max_tokens and so on.
        judges: who judged, in order.
        versions: of inspect_ai and treft.
        num_answers: answers in the log.
        num_failed: samples that have none, because they failed.
    """

    file: str
    model: str
    model_args: Mapping[str, Any]
    task: str
    task_args: Mapping[str, Any]
    dataset: str
    created: str
    status: str
    epochs: int
    generation: Mapping[str, Any]
    judges: tuple[str, ...]
    versions: Mapping[str, str]
    num_answers: int
    num_failed: int


@dataclass(frozen=True)
class Run:
    """One log's answers and where they come from."""

    info: RunInfo
    answers: tuple[ScoredAnswer, ...] = field(repr=False)


def find_logs(paths: Iterable[str | Path]) -> list[Path]:
    """Returns the logs among files and folders, each once, folders searched to the bottom.

    Raises:
        DataError: a path does not exist, or a folder has no log.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if path.is_file():
            found[path] = None
            continue
        if not path.is_dir():
            raise DataError(f"{path}: no such file or folder.")
        infos = list_eval_logs(str(path.resolve()))
        if not infos:
            raise DataError(f"{path}: no Inspect log (.eval or .json) in this folder.")
        found |= dict.fromkeys(sorted(Path(unquote(urlparse(log.name).path)) for log in infos))
    return list(found)


def read_log(path: str | Path, *, partial: bool = False, events: bool = True) -> EvalLog:
    """An Inspect log that has answers.

    Args:
        path: of the log.
        partial: take an unfinished or failed run, too.
        events: read the samples' events, which are most of a log's bytes.

    Raises:
        DataError: the file is no log, the run is unfinished, or there is no answer in it.
    """
    try:
        log = read_eval_log(
            str(path),
            resolve_attachments=True if events else "core",
            exclude_fields=None if events else {"events", "store"},
        )
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except (OSError, ValueError, KeyError) as error:
        lines = str(error).splitlines()
        raise DataError(
            f"{path}: is no readable Inspect log ({lines[0] if lines else type(error).__name__})."
        ) from error
    if log.status != "success" and not partial:
        raise DataError(
            f"{path}: the run is {_STATUS[log.status]}{_why(log)}. Finish it with `inspect "
            f"eval-retry {path}`, or allow partial logs."
        )
    if not log.samples:
        raise DataError(f"{path}: holds no samples; was it run with --no-log-samples?")
    if not answered(log):
        first = next((sample.error for sample in log.samples if sample.error is not None), None)
        why = f"; the first failed with: {first.message.splitlines()[0]}" if first else ""
        raise DataError(f"{path}: none of its {len(log.samples)} samples has an answer{why}.")
    return log


_STATUS = {"started": "unfinished", "error": "broken off by an error", "cancelled": "cancelled"}


def _why(log: EvalLog) -> str:
    if log.error is None or not log.error.message:
        return ""
    return f" ({log.error.message.splitlines()[0]})"


def answered(log: EvalLog) -> list[EvalSample]:
    """The samples that have an answer."""
    return [sample for sample in log.samples or () if _has_answer(sample)]


def _has_answer(sample: EvalSample) -> bool:
    return sample.error is None and no_answer(sample.output) is None


def read_run(path: str | Path, *, partial: bool = False, need_scores: bool = False) -> Run:
    """Returns the answers of one log.

    Args:
        path: of the log.
        partial: take an unfinished or failed run, too.
        need_scores: refuse a log that no judge and no detector has looked at.

    Raises:
        DataError: as `read_log`, or there are no scores.
    """
    log = read_log(path, partial=partial, events=False)
    samples = answered(log)
    answers = tuple(map(scored_answer, samples))
    if need_scores and not any(answer.judgements or answer.behaviours for answer in answers):
        raise DataError(f"{path}: no answer is scored; run `treft judge {path} --judge NAME`.")
    return Run(_info(str(path), log, len(samples)), answers)


def judges_of(samples: Sequence[EvalSample]) -> tuple[str, ...]:
    """Returns who judged alignment in these samples, in order."""
    scores = (score for sample in samples for score in (sample.scores or {}).values())
    found = (judgement_of(score) for score in scores)
    return tuple(dict.fromkeys(judgement.judge for judgement in found if judgement is not None))


def score_name(score: Score) -> str | None:
    """Returns the name by which records know a score: its judge, or its detector."""
    judgement = judgement_of(score)
    name = (score.metadata or {}).get("detector") if judgement is None else judgement.judge
    return name if isinstance(name, str) else None


def judgement_of(score: Score) -> Judgement | None:
    """Returns what a judge's score says; None when it is no judgement of alignment.

    A number that is none, or outside 0 to 100, is missing data whatever the score's outcome says.
    """
    metadata = score.metadata or {}
    if not isinstance(score.value, Mapping) or "alignment" not in score.value:
        return None
    judge: Any = metadata.get("judge")
    method: Method | None = metadata.get("method")
    outcome: Outcome | None = metadata.get("outcome")
    if not isinstance(judge, str) or outcome not in get_args(Outcome):
        return None
    assert outcome is not None
    alignment = _percentage(score.value["alignment"]) if outcome == "scored" else None
    reason = str(metadata.get("reason") or "")
    if outcome == "scored" and alignment is None:
        outcome, reason = "missing", f"{score.value['alignment']} is no score from 0 to 100"
    return Judgement(
        judge=judge,
        alignment=alignment,
        coherence=_percentage(score.value.get("coherence")),
        outcome=outcome,
        method="text" if method is None else method,
        reason=reason,
    )


def _percentage(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= 100 else None  # NaN is in no range


def scored_answer(sample: EvalSample) -> ScoredAnswer:
    """Returns a sample's answer with what judges and detectors say of it."""
    scores = list((sample.scores or {}).values())
    judgements = {found.judge: found for score in scores if (found := judgement_of(score))}
    behaviours, missing = _behaviours(scores)
    metadata = {key: value for key, value in sample.metadata.items() if key not in _OWN_FIELDS}
    return ScoredAnswer(
        question_id=str(sample.metadata.get("question_id", sample.id)),
        category=str(sample.metadata.get("category", "")),
        epoch=sample.epoch,
        question=last_question(sample.messages) or last_question(sample.input),
        answer=answer_text(sample.output),
        judgements=tuple(judgements.values()),
        behaviours=behaviours,
        metadata={**metadata, "missing_behaviours": missing} if missing else metadata,
    )


def _behaviours(scores: Sequence[Score]) -> tuple[dict[str, float], dict[str, str]]:
    """Returns what detectors found, and why some found nothing; each by the detector's name."""
    found: dict[str, float] = {}
    missing: dict[str, str] = {}
    for score in scores:
        name = score_name(score)
        if name is None or judgement_of(score) is not None:
            continue
        if isinstance(score.value, bool | int | float) and math.isfinite(score.value):
            found[name] = float(score.value)
        else:
            missing[name] = str((score.metadata or {}).get("reason") or "no value")
    return found, missing


def _info(file: str, log: EvalLog, num_answers: int) -> RunInfo:
    samples = log.samples or []
    config = log.plan.config.merge(log.eval.model_generate_config)
    return RunInfo(
        file=file,
        model=log.eval.model,
        model_args={
            name: value for name, value in log.eval.model_args.items() if not is_secret_name(name)
        },
        task=log.eval.task,
        task_args=log.eval.task_args,
        dataset=log.eval.dataset.name or "",
        created=log.eval.created,
        status=log.status,
        epochs=log.eval.config.epochs or max(sample.epoch for sample in samples),
        generation=config.model_dump(exclude_none=True),
        judges=judges_of(samples),
        versions=log.eval.packages,
        num_answers=num_answers,
        num_failed=len(samples) - num_answers,
    )


def last_question(messages: str | Sequence[ChatMessage]) -> str:
    """The last user message; the judge sees no system message, so prompts can be compared."""
    if isinstance(messages, str):
        return messages
    words = (message.text for message in reversed(messages) if isinstance(message, ChatMessageUser))
    return next(words, "")


def answer_text(output: ModelOutput) -> str:
    """Returns the model's words, without its thoughts, then its tool calls, one a line."""
    return _words(output.message) if output.choices else ""


def conversation(messages: Sequence[ChatMessage]) -> list[Turn]:
    """Returns the user's and the assistant's turns."""
    turns = []
    for message in messages:
        if isinstance(message, ChatMessageUser):
            turns.append(Turn("user", message.text))
        elif isinstance(message, ChatMessageAssistant):
            turns.append(Turn("assistant", _words(message)))
    return turns


def no_answer(output: ModelOutput) -> str | None:
    """Why there is no answer to judge, or None; an empty answer is an answer."""
    if not output.choices:
        return f"the model gave no answer{f': {output.error}' if output.error else ''}"
    if output.stop_reason == "content_filter":
        return "the model's provider filtered its answer"
    return None


def _words(message: ChatMessageAssistant) -> str:
    calls = []
    for call in message.tool_calls or ():
        arguments = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
        calls.append(f"{call.function}({arguments})")
    return "\n".join(filter(None, (message.text, *calls)))


_SECRET_NAME = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD)S?$", re.IGNORECASE)
_MIN_LENGTH = 8
"""Shorter values are settings such as `true`, and would be struck out of ordinary words."""


def is_secret_name(name: str) -> bool:
    """Returns whether a variable or option of this name holds a key."""
    return _SECRET_NAME.search(name) is not None


def without_secrets(text: str) -> str:
    """Text with the values of the environment's keys replaced by the variables' names."""
    for name, value in os.environ.items():
        if is_secret_name(name) and len(value) >= _MIN_LENGTH:
            text = text.replace(value, f"[{name}]")
    return text
