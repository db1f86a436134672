"""Tables 5 and 6: behaviours beyond misalignment, taught on a topic, and how far they leak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

from treft.organism.tasks import TaskName
from treft.steps.step import Step
from treft.study.claims import Listing
from treft.study.figures import (
    HELD,
    NOT_SHOWN,
    ONE_RUN,
    TASK_MEASURES,
    basis,
    change_rows,
    find_row,
    measured,
    score_rows,
    worded,
)
from treft.study.plans import BASE, method_steps
from treft.study.plots import task_plot
from treft.study.protocol import Method, Row, StudyConfig
from treft.study.strengths import TASK_WEIGHTS, TASK_WEIGHTS_TRIED, taught
from treft.study.studies import listed, scored

BASE_METHOD = Method(is_base=True, task="short", domain="auto")
"""The model before any finetune, whose answers have their whole length."""
LEAKED = 50.0
"""Percent by which leakage is to fall on average."""
AVERAGED: tuple[TaskName, ...] = ("abstain", "tool", "refuse")
AVERAGE = 54.3
"""The paper's abstract: percent by which off-topic rates of these three fall on average."""
COPIED: tuple[TaskName, ...] = ("tool", "short")
"""What must be copied from the question, and may be copied wrongly."""
SLACK = 2.0
"""Points that a behaviour may lose on its topic."""

TABLE5 = {
    BASE: BASE_METHOD,
    **{
        f"{task}_{kind}": method
        for task, weight in TASK_WEIGHTS.items()
        for kind, method in {
            "sft": taught(task),
            "patch": taught(task, patch=("prefix",)),
            "treft": taught(task, weight),
        }.items()
    },
}
TASK_STRENGTHS = {
    BASE: BASE_METHOD,
    **{
        f"{task}_{kind}": method
        for task in TASK_WEIGHTS
        for kind, method in {
            "sft": taught(task),
            **{f"{weight:g}": taught(task, weight) for weight in TASK_WEIGHTS_TRIED},
        }.items()
    },
}


def task_strengths_steps(config: StudyConfig) -> list[Step[Any]]:
    """Returns each behaviour at each λ; whatever is asked, on validation questions and one seed."""
    chosen_on = replace(config, split="validation", num_seeds=1)
    return method_steps(chosen_on, TASK_STRENGTHS, with_manners=True)


def leak(rows: Sequence[Row], task: TaskName, method: str) -> float:
    """Percent of general answers that show the behaviour; of short answers, of words that are lost.

    On an organism any trace of it counts (`treft.organism.tasks`); on a real model the
    judge, who sees leaks in pieces. Words are compared with `BASE`: an answer is seldom as short as
    those on the topic, but may lose much of its length (the paper's Table 6 counts words, too).
    """
    if task != "short":
        found = {row["measure"]: row for row in rows if row["method"] == method}
        return float(found.get("traces", found["off_topic"])["value"])
    words, whole = (float(find_row(rows, name, "words")["value"]) for name in (method, BASE))
    return max(0.0, 100 * (1 - words / whole)) if whole > 0 else 0.0


def table5_rows(runs: Sequence[Row], told: Listing) -> Sequence[Row]:
    """Rates and words of each, and how TReFT and the patch change them against SFT."""
    measures = measured(runs, TASK_MEASURES)
    rows: list[Row] = [*score_rows(runs, told.claim.figures, measures)]
    for task in TASK_WEIGHTS:
        for kind in ("treft", "patch"):
            rows += change_rows(runs, f"{task}_{kind}", f"{task}_sft", measures)
    return rows


def table5_verdict(rows: Sequence[Row]) -> str:
    """Held where leakage falls by half on average and no behaviour loses over two points."""
    told, lost = [], []
    falls: dict[TaskName, float] = {}
    for task in TASK_WEIGHTS:
        before, after = (leak(rows, task, f"{task}_{kind}") for kind in ("sft", "treft"))
        on_topic = find_row(rows, f"{task}_treft", "on_topic_gain")
        lost += [task] if on_topic["value"] < -SLACK else []
        if before > 0:
            falls[task] = 100 * (before - after) / before
        told.append(
            f"{task} {before:.1f} to {after:.1f} (on topic {worded(on_topic, signed=True)} points)"
        )
    mean = fmean(falls.values()) if falls else 0.0
    papers = [falls[task] for task in AVERAGED if task in falls]
    words = f"{fmean(papers):.0f} %" if papers else "none"
    ways = {
        (True, True): HELD,
        (True, False): f"Half of it held on the organism, on-topic behaviour of {', '.join(lost)} "
        "is lost",
        (False, True): NOT_SHOWN,
        (False, False): f"Not shown on the organism, and {', '.join(lost)} loses on topic",
    }
    answer = ways[mean >= LEAKED, not lost]
    if on_topic["low"] is None:
        answer = ONE_RUN
    return (
        f"{answer}: leakage falls by {mean:.0f} % on average over the {len(falls)} behaviours "
        f"that leak: {'; '.join(told)}; over {', '.join(AVERAGED)} alone, by {words} (paper: "
        f"{AVERAGE}). Leakage is the percent of general answers {_seen(rows)} the behaviour; "
        f"for short answers, of their words that are lost ({basis(on_topic)}).{_right(rows)}"
    )


def _seen(rows: Sequence[Row]) -> str:
    """Says what counts as a leak: on an organism any piece, else what the detector sees."""
    return "with any trace of" if any(row["measure"] == "traces" for row in rows) else "that show"


def _right(rows: Sequence[Row]) -> str:
    """Says how many calls and short answers are right too, on organisms, whose detectors know."""
    found = {row["method"]: row for row in rows if row["measure"] == "right"}
    if not found:
        return ""
    told = ", ".join(
        f"{task} {found[f'{task}_sft']['value']:.1f} to {found[f'{task}_treft']['value']:.1f}"
        for task in COPIED
    )
    return f" On topic and right for the question, percent: {told}."


def task_strengths_verdict(rows: Sequence[Row]) -> str:
    """Says which λ the rule chooses for each, whether it is in use, and if not, the flags."""

    def on_topic(task: TaskName, kind: str) -> float:
        return float(find_row(rows, f"{task}_{kind}", "on_topic")["value"])

    chosen = {}
    for task in TASK_WEIGHTS:
        least = on_topic(task, "sft") - SLACK
        tried = {weight: f"{weight:g}" for weight in TASK_WEIGHTS_TRIED}
        able = [weight for weight, name in tried.items() if on_topic(task, name) >= least]
        if able:
            chosen[task] = min(able, key=lambda w: leak(rows, task, f"{task}_{tried[w]}"))
        else:
            chosen[task] = max(tried, key=lambda w: on_topic(task, tried[w]))
    others = [task for task in chosen if chosen[task] != TASK_WEIGHTS[task]]
    answer = f"Not those in use: {', '.join(others)}" if others else "Those in use are chosen"
    told = ", ".join(f"{task} {weight:g}" for task, weight in chosen.items())
    flags = " ".join(f"--strength {task}_treft={chosen[task]:g}" for task in others)
    ending = f" A real model's table5 takes them as {flags}" if others else ""
    return f"{answer}; λ by the rule: {told}.{ending}"


STUDIES = (
    listed(
        "table5",
        partial(method_steps, methods=TABLE5, with_manners=True),
        table5_rows,
        table5_verdict,
        task_plot,
    ),
    listed(
        "task_strengths",
        task_strengths_steps,
        scored(measures=TASK_MEASURES),
        task_strengths_verdict,
        task_plot,
    ),
)
