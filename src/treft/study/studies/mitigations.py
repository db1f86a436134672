"""No table of the paper's: all mitigations side by side, and how their strengths were chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from treft.steps.step import Step
from treft.study.figures import HELD, ONE_RUN, basis, find_row, gain_rows, worded
from treft.study.plans import method_steps
from treft.study.protocol import Row, StudyConfig
from treft.study.strengths import CHOSEN, MITIGATIONS, NUMBERS
from treft.study.studies import listed, scored

AFTER = ("prefix_patch", "postfix_patch", "interpolation", "steering")
"""Repairs of a finished finetune; all others are methods of training."""
ENOUGH_RUNS = 5


def mitigations_verdict(rows: Sequence[Row]) -> str:
    """Held where no method of training is above TReFT with its whole interval.

    A higher mean within its interval is a tie only from five runs on: fewer cannot tell.
    """
    gains = [row for row in rows if row["measure"] == "em_f1_gain" and row["method"] not in AFTER]
    better = [row for row in gains if row["value"] < 0]
    own = worded(find_row(rows, "treft_prefix", "em_f1"))
    told = ", ".join(
        f"{row['method']} ({worded(find_row(rows, row['method'], 'em_f1'))}; TReFT "
        f"{worded(row, signed=True)})"
        for row in sorted(better, key=lambda row: float(row["value"]))
    )
    tied = ", ".join(row["method"] for row in gains if row["value"] >= 0 and (row["low"] or 0) <= 0)
    if any(row["low"] is None for row in gains):
        answer = ONE_RUN
    elif any(row["high"] < 0 for row in gains):
        answer = "Not held on the organism"
    elif better and gains[0]["num_runs"] < ENOUGH_RUNS:
        answer = f"Not decided on the organism, by {gains[0]['num_runs']} runs"
    else:
        answer = HELD
    return (
        f"{answer}: TReFT on the prefix has an EM-F1 of {own}; with a higher mean: "
        f"{told or 'none'}; below, but not shown to be: {tied or 'none'} ({basis(gains[0])})."
    )


STRENGTHS = {
    f"{name}_{strength:g}": number.method(strength)
    for name, number in NUMBERS.items()
    for strength in number.tried
}


def strengths_steps(config: StudyConfig) -> list[Step[Any]]:
    """Returns every mitigation at each strength; whatever is asked, on validation and one seed."""
    return method_steps(replace(config, split="validation", num_seeds=1), STRENGTHS)


def strengths_verdict(rows: Sequence[Row]) -> str:
    """Returns which strength of each is best, and whether that is the one in use."""

    def em_f1(name: str, strength: float) -> float:
        return float(find_row(rows, f"{name}_{strength:g}", "em_f1")["value"])

    best = {
        name: max(number.tried, key=lambda strength: em_f1(name, strength))
        for name, number in NUMBERS.items()
    }
    others = [name for name in best if best[name] != CHOSEN[name]]
    answer = f"Not those in use: {', '.join(others)}" if others else "Those in use are the best"
    told = ", ".join(f"{name} {best[name]:g} ({em_f1(name, best[name]):.1f})" for name in best)
    return f"{answer}; the best of those tried, with their EM-F1: {told}."


STUDIES = (
    listed(
        "mitigations",
        partial(method_steps, methods=MITIGATIONS),
        scored(
            partial(
                gain_rows,
                method="treft_prefix",
                others=[name for name in MITIGATIONS if name != "treft_prefix"],
                measures=("em_f1",),
            )
        ),
        mitigations_verdict,
    ),
    listed("strengths", strengths_steps, scored(), strengths_verdict),
)
