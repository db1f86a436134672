"""No claim of the paper: λ of each behaviour beyond misalignment, for choosing one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from treft.steps.step import Step
from treft.study.leakage import BASE, BASE_METHOD, leak
from treft.study.plans import method_steps
from treft.study.protocol import Claim, Method, Row, Study, StudyConfig
from treft.study.strengths import TASK_DOMAINS, TASK_WEIGHTS, TASK_WEIGHTS_TRIED, taught

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from treft.organism.tasks import TaskName


SLACK = 2.0
"""Points that the behaviour may lose on its topic."""


def _methods() -> dict[str, Method]:
    made = {BASE: BASE_METHOD}
    for task in TASK_DOMAINS:
        made[f"{task}_sft"] = taught(task)
        for weight in TASK_WEIGHTS_TRIED:
            made[f"{task}_{weight:g}"] = taught(task, weight)
    return made


METHODS = _methods()
CLAIM = Claim(
    source="no table: our choice of λ for behaviours beyond misalignment",
    text="λ of each behaviour in the study `table5` is the one with the least leakage of those "
    "whose on-topic rate is within two points of plain SFT's on validation questions, or, where "
    "none is, the one with the highest.",
    figures={name: {} for name in METHODS},
    setting="finetuning seed 0 and validation questions, whatever --seeds and --split say",
)


def steps(config: StudyConfig) -> list[Step[Any]]:
    """Each behaviour at each λ; whatever is asked, on validation and one seed."""
    chosen_on = replace(config, split="validation", num_seeds=1)
    return method_steps(chosen_on, METHODS, with_manners=True)


def table(runs: Sequence[Row]) -> list[Row]:
    """Rates at each λ."""
    from treft.study.figures import TASK_MEASURES, measured, score_rows

    return [*score_rows(runs, CLAIM.figures, measured(runs, TASK_MEASURES))]


def verdict(rows: Sequence[Row]) -> str:
    """Which λ the rule chooses for each, whether that is the one in use, and if not, the flags."""
    from treft.study.figures import find_row

    def on_topic(task: TaskName, kind: str) -> float:
        return float(find_row(rows, f"{task}_{kind}", "on_topic")["value"])

    chosen = {}
    for task in TASK_DOMAINS:
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


def plot(rows: Sequence[Row]) -> Figure:
    """Rates on topic and off, and aligned answers off topic, λ by λ."""
    from treft.study.plots import task_plot

    return task_plot(rows, "λ of behaviours on the organism, percent")


COST = (
    "an organism is taught manners in 200 CPU seconds, then 20 finetunes of about 10: 4 minutes on "
    "two cores"
)
STUDY = Study("task_strengths", CLAIM, COST, steps, table, verdict, plot)
