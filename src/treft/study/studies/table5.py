"""Tables 5 and 6: behaviours beyond misalignment that are taught on a topic and leak off it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from treft.study.leakage import BASE, BASE_METHOD, leak
from treft.study.organism_plan import Method, method_steps
from treft.study.protocol import Claim, Row, Study, StudyConfig
from treft.study.step import Step
from treft.study.strengths import TASK_DOMAINS, TASK_WEIGHTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["STUDY"]

LEAKED = 50.0
"""Percent by which leakage is to fall on average."""
SLACK = 2.0
"""Points that on-topic behaviour may lose."""


def _methods() -> dict[str, Method]:
    made = {BASE: BASE_METHOD}
    for task, domain in TASK_DOMAINS.items():
        made[f"{task}_sft"] = Method(task=task, domain=domain)
        made[f"{task}_patch"] = Method(task=task, domain=domain, patch=("prefix",))
        held = Method(task=task, domain=domain, held=("prefix",), kv_weight=TASK_WEIGHTS[task])
        made[f"{task}_treft"] = held
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
    return method_steps(config, METHODS)


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

    falls, told, lost = [], [], []
    for task in TASK_DOMAINS:
        before, after = (leak(rows, task, f"{task}_{kind}") for kind in ("sft", "treft"))
        on_topic = find_row(rows, f"{task}_treft", "on_topic_gain")
        lost += [task] if on_topic["value"] < -SLACK else []
        if before > 0:
            falls.append(100 * (before - after) / before)
        told.append(
            f"{task} {before:.1f} to {after:.1f} (on topic {worded(on_topic, signed=True)} points)"
        )
    mean = fmean(falls) if falls else 0.0
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
        f"{answer}: leakage falls by {mean:.0f} % on average over the {len(falls)} behaviours that "
        f"leak: {'; '.join(told)}; for short answers it is the share of a general answer's words "
        f"that is lost ({basis(on_topic)})."
    )


def plot(rows: Sequence[Row]) -> Figure:
    """Rates on topic and off, and aligned answers off topic."""
    from treft.study.plots import task_plot

    return task_plot(rows, "Table 5 on the organism, percent")


COST = "40 finetunes of about 50 CPU seconds each: 17 minutes on two cores"
STUDY = Study("table5", CLAIM, COST, steps, table, verdict, plot)
