"""Judge the answers of existing logs again, without generating anything.

Each log gets a copy with the new judgements beside those it has; the log itself is never touched.
A copy appears whole, when all its answers were shown to the judges. A run that was killed does not
pay again, because what judges said is in Inspect's cache and finished copies are skipped; a copy
with missing judgements is not finished, and the same command tries those again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
from inspect_ai.log import (
    EvalLog,
    EvalResults,
    EvalSample,
    read_eval_log_async,
    write_eval_log_async,
)
from inspect_ai.model import get_model
from inspect_ai.scorer import Score, Scorer

from treft.answers.logs import answer_text, answered, find_logs, read_log, read_run, score_name
from treft.errors import DataError
from treft.judging.cost import Cost, cost_of
from treft.judging.panel import Panel, summarise

OnAnswer = Callable[[Path, int, int], None]
"""Called as (log, answers judged, answers in all)."""


@dataclass(frozen=True)
class Job:
    """One log to judge.

    Attributes:
        log: the given log.
        output: its copy with the new judgements.
        num_answers: in the log.
        cost: of judging them; nothing when it is done.
        done: the copy is there already, by these judges, and nothing is missing in it.
    """

    log: Path
    output: Path
    num_answers: int
    cost: Cost
    done: bool


def plan_jobs(
    paths: Sequence[str | Path],
    panel: Panel,
    output: Path | None = None,
    *,
    partial: bool = False,
    again: bool = False,
) -> list[Job]:
    """Returns what there is to do and what it costs; every log is read before anything is spent.

    Args:
        paths: logs and folders of logs.
        panel: who judges what.
        output: folder for the copies, in which they lie as the logs do in a given folder; by
            default the folder's own name with `-judged`, beside it.
        partial: take unfinished or failed runs, too.
        again: replace, in the copy, what the panel has said before.

    Raises:
        DataError: a log cannot be used, was judged before, or its copy would replace a file.
    """
    jobs: dict[Path, Job] = {}
    for log, copy in _copies(paths, output):
        if copy in jobs and jobs[copy].log != log:
            raise DataError(f"{log} and {jobs[copy].log} would both be written to {copy}.")
        if copy == log:
            raise DataError(f"{log}: a log is never overwritten; choose another output folder.")
        jobs[copy] = _job(log, copy, panel, partial, again)
    if not jobs:
        raise DataError(f"no log lies outside of the output folder {output}; choose another.")
    return list(jobs.values())


def _copies(paths: Sequence[str | Path], output: Path | None) -> Iterator[tuple[Path, Path]]:
    """Each log with where its copy goes; what lies in the output folder is no input."""
    for path in map(Path, paths):
        root = (path if path.is_dir() else path.parent).resolve()
        target = (output or root.with_name(f"{root.name}-judged")).resolve()
        for found in find_logs([path]):
            log = root / found.name if path.is_file() else found
            if path.is_file() or not log.is_relative_to(target):
                yield log, target / log.relative_to(root)


def _job(path: Path, copy: Path, panel: Panel, partial: bool, again: bool) -> Job:
    log = read_log(path, partial=partial, events=False)
    samples = answered(log)
    before = sorted(_names(samples) & set(panel.score_names))
    if before and not again:
        raise DataError(
            f"{path}: holds {', '.join(before)} already; leave the judge out, or judge again."
        )
    done = _is_done(log, copy, panel)
    prompts = {
        prompt
        for sample in ([] if done else samples)
        for prompt in panel.prompts(sample.messages, answer_text(sample.output))
    }
    cost = cost_of(prompts, panel.num_paid, max_tokens=panel.options.max_tokens)
    return Job(path, copy, len(samples), cost, done)


def _names(samples: Sequence[EvalSample]) -> set[str]:
    """Returns the names of all scores."""
    scores = (score for sample in samples for score in (sample.scores or {}).values())
    return {name for score in scores if (name := score_name(score)) is not None}


def _is_done(log: EvalLog, copy: Path, panel: Panel) -> bool:
    """Returns whether the copy is there and whole; another file of that name is an error."""
    if not copy.exists():
        return False
    found = read_log(copy, partial=True, events=False)
    if found.eval.eval_id == log.eval.eval_id and set(panel.score_names) <= _names(answered(found)):
        answers = read_run(copy, partial=True).answers
        return not any(one.outcomes["missing"] for one in summarise(answers, panel))
    raise DataError(
        f"{copy}: exists, and is not this log with {', '.join(panel.score_names)}; choose another "
        "output folder."
    )


def rejudge(jobs: Sequence[Job], panel: Panel, on_answer: OnAnswer | None = None) -> None:
    """Judge the answers of logs and write the copies, one log after the other.

    Args:
        jobs: what to do; those that are done are skipped.
        panel: who judges what.
        on_answer: told about progress.
    """
    anyio.run(_rejudge_all, jobs, panel, on_answer)


async def _rejudge_all(jobs: Sequence[Job], panel: Panel, on_answer: OnAnswer | None) -> None:
    """Run all in one event loop, which the judges' connections belong to."""
    scorers = panel.scorers()
    for job in jobs:
        if not job.done:
            log = await read_eval_log_async(str(job.log))
            await _rejudge(log, job, scorers, panel, on_answer)


async def _rejudge(
    log: EvalLog,
    job: Job,
    scorers: list[Scorer],
    panel: Panel,
    on_answer: OnAnswer | None,
) -> None:
    """Score a log's answered samples with Inspect's own `score`, in place, and write it."""
    from inspect_ai import score_async

    samples = answered(log)
    _drop(log, samples, panel)
    _same_names(samples)
    done = 0

    @contextlib.asynccontextmanager
    async def sample(index: int) -> AsyncIterator[EvalSample]:
        nonlocal done
        yield samples[index]
        done += 1
        if on_answer is not None:
            on_answer(job.log, done, len(samples))

    results, roles = log.results or EvalResults(total_samples=len(samples)), log.eval.model_roles
    total = results.total_samples
    log.results, log.eval.model_roles = results, None  # no model but the judges is loaded
    results.total_samples = len(samples)
    await score_async(
        log,
        scorers,
        model=get_model("none"),
        action="append",
        display="none",
        copy=False,
        samples=sample,
    )
    results.total_samples, log.eval.model_roles = total, roles
    await _write(log, job.output)


def _drop(log: EvalLog, samples: Sequence[EvalSample], panel: Panel) -> None:
    """Forget what the panel said before."""
    dropped: set[str] = set()
    for sample in samples:
        scores = sample.scores or {}
        mine = {key for key in scores if score_name(scores[key]) in panel.score_names}
        sample.scores = {key: score for key, score in scores.items() if key not in mine}
        dropped |= mine
    if log.results is not None:
        log.results.scores = [score for score in log.results.scores if score.scorer not in dropped]
    if log.reductions is not None:
        log.reductions = [found for found in log.reductions if found.scorer not in dropped]
    if log.eval.scorers is not None:
        keys = _keys([scorer.name for scorer in log.eval.scorers])
        kept = zip(log.eval.scorers, keys, strict=True)
        log.eval.scorers = [scorer for scorer, key in kept if key not in dropped]


def _keys(names: Sequence[str]) -> list[str]:
    """What Inspect calls the scores of scorers in a log's header: the second `a` is `a1`."""
    keys: list[str] = []
    for name in names:
        base = name.rsplit("/", 1)[-1]
        tried = (base if count == 0 else f"{base}{count}" for count in itertools.count())
        keys.append(next(key for key in tried if key not in keys))
    return keys


def _same_names(samples: Sequence[EvalSample]) -> None:
    """Give every sample the same scores' names, by which Inspect names the new ones."""
    names = dict.fromkeys(name for sample in samples for name in sample.scores or {})
    for sample in samples:
        given = sample.scores or {}
        sample.scores = {
            name: given.get(name) or Score.unscored(reason="scoring_failed") for name in names
        }


async def _write(log: EvalLog, path: Path) -> None:
    """Write a log whole or not at all; the name hides a half-written one from Inspect."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        await write_eval_log_async(
            log, str(temporary), format="json" if path.suffix == ".json" else "eval"
        )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
