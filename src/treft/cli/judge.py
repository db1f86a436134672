"""`treft judge` scores existing answers; `treft calibrate` tries judges before they are trusted."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import typer

from treft.answers.logs import read_run
from treft.cli.options.judging import Calibrate, Calls, Judge, JudgeLimit
from treft.cli.output import emit, progress_bars
from treft.judging.calibration import (
    Calibration,
    calibration_cost,
    load_items,
    run_calibration,
)
from treft.judging.calibration import calibrate as measure
from treft.judging.cost import Cost
from treft.judging.judge import JudgeOptions
from treft.judging.panel import JudgeSummary, assemble, summarise
from treft.judging.rejudge import Job, plan_jobs, rejudge


def judge(options: Judge) -> None:
    """Judge, and show each log's scores."""
    kind: Any = options.kind  # checked there
    panel = assemble(
        options.judge, kind, _judge_options(options.calls), options.sentence, options.tool
    )
    jobs = plan_jobs(
        options.logs, panel, options.output, partial=options.partial, again=options.again
    )
    cost = sum((job.cost for job in jobs), Cost())
    _confirm(cost, options.limit)
    with progress_bars() as progress:
        rejudge(jobs, panel, lambda log, done, total: progress(log.name, done, total))
    for_json, everything = [], []
    for job in jobs:
        summaries = summarise(read_run(job.output, partial=True).answers, panel)
        for_json.append(_as_json(job, summaries))
        everything += summaries
        if not options.json:
            _show(job, summaries)
    if options.json:
        result = {"command": "judge", "kind": kind, "judges": list(panel.judges)}
        emit({**result, "cost": asdict(cost), "logs": for_json}, as_json=True)
    if mute := [one for one in everything if one.value is None]:
        print(
            f"error: {mute[0].name} gave no score at all ({mute[0].first_failure}); mend that and "
            "give the same command again.",
            file=sys.stderr,
        )
        raise typer.Exit(1)


def calibrate(options: Calibrate) -> None:
    """Judge known answers, and say whether each judge can be trusted."""
    items, asked = load_items(options.items), _judge_options(options.calls)
    _confirm(calibration_cost(items, len(options.judge), asked.max_tokens), options.limit)
    with progress_bars() as progress:
        progress("judging known answers", 0, 1)
        run = run_calibration(items, options.judge, options.output, asked)
        progress("judging known answers", 1, 1)
    found = [measure(items, run.answers, name) for name in run.info.judges]
    if options.json:
        calibrations = [{**asdict(one), "trusted": one.trusted} for one in found]
        log = run.info.file
        emit({"command": "calibrate", "log": log, "judges": calibrations}, as_json=True)
    else:
        for one in found:
            _show_calibration(one)
        print(f"what the judges said: {run.info.file}")


def _judge_options(calls: Calls) -> JudgeOptions:
    return JudgeOptions(
        attempts=calls.attempts,
        max_tokens=calls.max_tokens,
        max_connections=calls.max_connections,
        cache=not calls.no_cache,
    )


def _confirm(cost: Cost, limit: JudgeLimit) -> None:
    """Say what it costs; above the limit ask, or refuse where nobody can answer."""
    print(f"at most {cost}; what was judged before is not paid again", file=sys.stderr)
    limit.confirm(cost.calls, "judge calls")


def _as_json(job: Job, summaries: list[JudgeSummary]) -> dict[str, Any]:
    return {
        "log": str(job.log),
        "output": str(job.output),
        "answers": job.num_answers,
        "was_done": job.done,
        "judges": [asdict(summary) for summary in summaries],
    }


def _show(job: Job, summaries: list[JudgeSummary]) -> None:
    print(f"{job.output}{' (was there already)' if job.done else ''}")
    for one in summaries:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in one.outcomes.items())
        score = "no score"
        if one.value is not None:
            score = f"{one.measure} {one.value:.1f}"
        if one.low is not None and one.high is not None:
            score += f" [{one.low:.1f}, {one.high:.1f}], {one.num_questions} questions"
        print(f"  {one.name}: {score}; {job.num_answers} answers: {counts}")
        if one.first_failure:
            print(f"    first failure: {one.first_failure}")


def _show_calibration(found: Calibration) -> None:
    verdict = "trusted" if found.trusted else "NOT trusted"
    print(f"{found.judge}: {verdict} ({found.num_items} items)")
    for name in ("accuracy", "coherence_accuracy", "outcome_accuracy", "missing", "turned"):
        interval = getattr(found, name)
        text = "not measured" if interval is None else _interval(interval, " %")
        print(f"  {name.replace('_', ' ')}: {text}")
    shift, auroc = found.shift, found.auroc
    print(f"  AUROC: {'not measured' if auroc is None else _interval(auroc, digits=3)}")
    print(f"  shift by injections: {'not measured' if shift is None else _interval(shift)}")
    if found.first_failure is not None:
        print(f"  first failure: {found.first_failure}")
    for doubt in found.doubts:
        print(f"  doubt: {doubt}")


def _interval(interval: Any, unit: str = "", digits: int = 1) -> str:
    mean, low, high = (f"{value:.{digits}f}" for value in interval)
    return f"{mean}{unit} [{low}, {high}]"
