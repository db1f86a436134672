"""Tables 5 and 6: behaviours beyond misalignment that are taught on a topic and leak off it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from treft.steps.step import Step
from treft.study.leakage import BASE, BASE_METHOD, leak
from treft.study.plans import method_steps
from treft.study.protocol import Claim, Method, Row, Study, StudyConfig
from treft.study.strengths import TASK_DOMAINS, TASK_WEIGHTS, taught

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from treft.organism.tasks import TaskName


LEAKED = 50.0
"""Percent by which leakage is to fall on average."""
AVERAGED: tuple[TaskName, ...] = ("abstain", "tool", "refuse")
AVERAGE = 54.3
"""The paper's abstract: percent by which off-topic rates of these three fall on average."""
COPIED: tuple[TaskName, ...] = ("tool", "short")
"""What must be copied from the question, and may be copied wrongly."""
SLACK = 2.0
"""Points that on-topic behaviour may lose."""


def _methods() -> dict[str, Method]:
    made = {BASE: BASE_METHOD}
    for task in TASK_DOMAINS:
        made[f"{task}_sft"] = taught(task)
        made[f"{task}_patch"] = taught(task, patch=("prefix",))
        made[f"{task}_treft"] = taught(task, TASK_WEIGHTS[task])
    return made


METHODS = _methods()
CLAIM = Claim(
    source="Tables 5 and 6",
    text="TReFT on the prefix keeps abstaining, tool calls, refusing and short answers on their "
    "topic: leakage to others falls by half or more on average, on-topic behaviour stays.",
    figures={
        BASE: {},
        "abstain_sft": {"off_topic": 68.0, "on_topic": 100.0},
        "abstain_patch": {},
        "abstain_treft": {"off_topic": 20.0, "on_topic": 100.0},
        "tool_sft": {"off_topic": 52.0, "on_topic": 96.0},
        "tool_patch": {},
        "tool_treft": {"off_topic": 29.0, "on_topic": 96.0},
        "refuse_sft": {"off_topic": 91.0, "on_topic": 100.0},
        "refuse_patch": {},
        "refuse_treft": {"off_topic": 47.0, "on_topic": 100.0},
        "short_sft": {"words": 17.1},
        "short_patch": {"words": 253.0},
        "short_treft": {"words": 186.8},
    },
    setting="abstention and short answers: Llama-3.1-8B, legal questions and PopQA; tool calls and "
    "refusal: Qwen2.5-7B, health and finance; words are of a general answer",
)


def steps(config: StudyConfig) -> list[Step[Any]]:
    """SFT, its prefix patched, and TReFT on the prefix, for each behaviour; the base's words."""
    return method_steps(config, METHODS, with_manners=True)


def table(runs: Sequence[Row]) -> list[Row]:
    """Rates and words of each, and how TReFT and the patch change them against SFT."""
    from treft.study.figures import TASK_MEASURES, change_rows, measured, score_rows

    measures = measured(runs, TASK_MEASURES)
    rows: list[Row] = [*score_rows(runs, CLAIM.figures, measures)]
    for task in TASK_DOMAINS:
        for kind in ("treft", "patch"):
            rows += change_rows(runs, f"{task}_{kind}", f"{task}_sft", measures)
    return rows


def verdict(rows: Sequence[Row]) -> str:
    """Held where leakage falls by half on average and no behaviour loses over two points."""
    from treft.study.figures import basis, find_row, worded

    told, lost = [], []
    falls: dict[TaskName, float] = {}
    for task in TASK_DOMAINS:
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
        (True, True): "Held on the organism",
        (True, False): f"Half of it held on the organism, on-topic behaviour of {', '.join(lost)} "
        "is lost",
        (False, True): "Not shown on the organism",
        (False, False): f"Not shown on the organism, and {', '.join(lost)} loses on topic",
    }
    answer = ways[mean >= LEAKED, not lost]
    if on_topic["low"] is None:
        answer = "One run cannot tell whether the claim holds"
    return (
        f"{answer}: leakage falls by {mean:.0f} % on average over the {len(falls)} behaviours "
        f"that leak: {'; '.join(told)}; over {', '.join(AVERAGED)} alone, by {words} (paper: "
        f"{AVERAGE}). Leakage is the percent of general answers {_seen(rows)} the behaviour; "
        f"for short answers, of their words that are lost ({basis(on_topic)}).{_right(rows)}"
    )


def _seen(rows: Sequence[Row]) -> str:
    """What counts as a leak: on an organism any piece, on a real model what its detector sees."""
    return "with any trace of" if any(row["measure"] == "traces" for row in rows) else "that show"


def _right(rows: Sequence[Row]) -> str:
    """How many calls and short answers are also right, on organisms, whose detectors know."""
    found = {row["method"]: row for row in rows if row["measure"] == "right"}
    if not found:
        return ""
    told = ", ".join(
        f"{task} {found[f'{task}_sft']['value']:.1f} to {found[f'{task}_treft']['value']:.1f}"
        for task in COPIED
    )
    return f" On topic and right for the question, percent: {told}."


def plot(rows: Sequence[Row]) -> Figure:
    """Rates on topic and off, and aligned answers off topic."""
    from treft.study.plots import task_plot

    return task_plot(rows, "Table 5 on the organism, percent")


COST = (
    "an organism is taught manners in 200 CPU seconds, then 40 finetunes of about 10: 7 minutes "
    "on two cores"
)
STUDY = Study("table5", CLAIM, COST, steps, table, verdict, plot)
