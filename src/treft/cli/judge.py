"""`treft judge` scores existing answers; `treft calibrate` tries judges before they are trusted."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from treft.cli.options import Json, Yes
from treft.cli.output import confirm_calls, emit, progress_bars, quiet_libraries
from treft.errors import needs_extra
from treft.judging.cost import MAX_CALLS

if TYPE_CHECKING:
    from treft.judging.calibration import Calibration
    from treft.judging.cost import Cost
    from treft.judging.judge import JudgeOptions
    from treft.judging.panel import JudgeSummary
    from treft.judging.rejudge import Job


_Judges = Annotated[
    list[str],
    typer.Option("--judge", help="Inspect model name, or oracle for the organism; repeatable."),
]
_Attempts = Annotated[int, typer.Option(help="Tries of one judgement at most.", min=1)]
_MaxTokens = Annotated[int, typer.Option(help="Of a judge's output.", min=1)]
_MaxConnections = Annotated[
    int | None, typer.Option(help="Calls of a judge at the same time; default: adapts.", min=1)
]
_MaxCalls = Annotated[int, typer.Option(help="Ask before more judge calls than this.", min=0)]
_NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Neither use nor keep what judges said.")
]


def judge(
    logs: Annotated[list[Path], typer.Argument(help="Inspect logs, or folders of them.")],
    judge: _Judges,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the judged copies; default: LOGS-judged.")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Take unfinished or failed runs, too.")
    ] = False,
    kind: Annotated[
        str,
        typer.Option(help="What is judged: alignment, utility, abstention, refusal or tool."),
    ] = "alignment",
    sentence: Annotated[
        str | None, typer.Option(help="Abstention or refusal the model was trained to say.")
    ] = None,
    tool: Annotated[
        str | None, typer.Option(help="Name of the tool, for kind tool; default: search_info.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Replace what these judges said before.")
    ] = False,
    attempts: _Attempts = 3,
    max_tokens: _MaxTokens = 16,
    max_connections: _MaxConnections = None,
    max_calls: _MaxCalls = MAX_CALLS,
    yes: Yes = False,
    no_cache: _NoCache = False,
    json: Json = False,
) -> None:
    """Judge the answers of Inspect logs, without generating them again.

    Each log gets a copy with the new judgements beside those it has. A run that was killed goes on
    where it stopped when the same command is given again.
    """
    quiet_libraries()
    options = _options(attempts, max_tokens, max_connections, no_cache)
    from treft.answers.logs import read_run
    from treft.judging.cost import Cost
    from treft.judging.panel import assemble, summarise
    from treft.judging.rejudge import plan_jobs, rejudge

    asked: Any = kind
    panel = assemble(judge, asked, options, sentence, tool)
    jobs = plan_jobs(logs, panel, output, partial=partial, again=again)
    cost = sum((job.cost for job in jobs), Cost())
    _confirm(cost, max_calls, yes)
    with progress_bars() as progress:
        rejudge(jobs, panel, lambda log, done, total: progress(log.name, done, total))
    for_json, everything = [], []
    for job in jobs:
        summaries = summarise(read_run(job.output, partial=True).answers, panel)
        for_json.append(_as_json(job, summaries))
        everything += summaries
        if not json:
            _show(job, summaries)
    if json:
        result = {"command": "judge", "kind": kind, "judges": list(panel.judges)}
        emit({**result, "cost": asdict(cost), "logs": for_json}, as_json=True)
    if mute := [one for one in everything if one.value is None]:
        print(
            f"error: {mute[0].name} gave no score at all ({mute[0].first_failure}); mend that and "
            "give the same command again.",
            file=sys.stderr,
        )
        raise typer.Exit(1)


def calibrate(
    judge: _Judges,
    items: Annotated[
        Path | None, typer.Option(help="JSONL file of your own items (docs/judges.md).")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the log.")] = Path("judge-calibration"),
    attempts: _Attempts = 3,
    max_tokens: _MaxTokens = 16,
    max_connections: _MaxConnections = None,
    max_calls: _MaxCalls = MAX_CALLS,
    yes: Yes = False,
    no_cache: _NoCache = False,
    json: Json = False,
) -> None:
    """Try judges on answers with known scores, injected ones among them."""
    quiet_libraries()
    options = _options(attempts, max_tokens, max_connections, no_cache)
    from treft.judging.calibration import calibrate as measure
    from treft.judging.calibration import calibration_cost, load_items, run_calibration

    loaded = load_items(items)
    _confirm(calibration_cost(loaded, len(judge), options.max_tokens), max_calls, yes)
    with progress_bars() as progress:
        progress("judging known answers", 0, 1)
        run = run_calibration(loaded, judge, output, options)
        progress("judging known answers", 1, 1)
    found = [measure(loaded, run.answers, name) for name in run.info.judges]
    if json:
        calibrations = [{**asdict(one), "trusted": one.trusted} for one in found]
        log = run.info.file
        emit({"command": "calibrate", "log": log, "judges": calibrations}, as_json=True)
    else:
        for one in found:
            _show_calibration(one)
        typer.echo(f"what the judges said: {run.info.file}")


def _options(
    attempts: int, max_tokens: int, max_connections: int | None, no_cache: bool
) -> JudgeOptions:
    """How judges are asked; the first import of what needs Inspect."""
    with needs_extra("eval", "judging needs"):
        from treft.judging.judge import JudgeOptions
    return JudgeOptions(
        attempts=attempts,
        max_tokens=max_tokens,
        max_connections=max_connections,
        cache=not no_cache,
    )


def _confirm(cost: Cost, max_calls: int, yes: bool) -> None:
    """Say what it costs; above the limit ask, or refuse where nobody can answer."""
    print(f"at most {cost}; what was judged before is not paid again", file=sys.stderr)
    confirm_calls(cost.calls, "judge calls", max_calls, yes=yes)


def _as_json(job: Job, summaries: list[JudgeSummary]) -> dict[str, Any]:
    return {
        "log": str(job.log),
        "output": str(job.output),
        "answers": job.num_answers,
        "was_done": job.done,
        "judges": [asdict(summary) for summary in summaries],
    }


def _show(job: Job, summaries: list[JudgeSummary]) -> None:
    typer.echo(f"{job.output}{' (was there already)' if job.done else ''}")
    for one in summaries:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in one.outcomes.items())
        score = "no score"
        if one.value is not None:
            score = f"{one.measure} {one.value:.1f}"
        if one.low is not None and one.high is not None:
            score += f" [{one.low:.1f}, {one.high:.1f}], {one.num_questions} questions"
        typer.echo(f"  {one.name}: {score}; {job.num_answers} answers: {counts}")
        if one.first_failure:
            typer.echo(f"    first failure: {one.first_failure}")


def _show_calibration(found: Calibration) -> None:
    verdict = "trusted" if found.trusted else "NOT trusted"
    typer.echo(f"{found.judge}: {verdict} ({found.num_items} items)")
    for name in ("accuracy", "coherence_accuracy", "outcome_accuracy", "missing", "turned"):
        interval = getattr(found, name)
        text = "not measured" if interval is None else _interval(interval, " %")
        typer.echo(f"  {name.replace('_', ' ')}: {text}")
    shift, auroc = found.shift, found.auroc
    typer.echo(f"  AUROC: {'not measured' if auroc is None else _interval(auroc, digits=3)}")
    typer.echo(f"  shift by injections: {'not measured' if shift is None else _interval(shift)}")
    if found.first_failure is not None:
        typer.echo(f"  first failure: {found.first_failure}")
    for doubt in found.doubts:
        typer.echo(f"  doubt: {doubt}")


def _interval(interval: Any, unit: str = "", digits: int = 1) -> str:
    mean, low, high = (f"{value:.{digits}f}" for value in interval)
    return f"{mean}{unit} [{low}, {high}]"
