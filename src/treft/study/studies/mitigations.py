"""No table of the paper's: all mitigations side by side, at equal settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from treft.steps.step import Step
from treft.study.plans import method_steps
from treft.study.protocol import Claim, Row, Study, StudyConfig
from treft.study.strengths import CHOSEN, mitigated

if TYPE_CHECKING:
    from matplotlib.figure import Figure


OURS = "treft_prefix"
AFTER = ("prefix_patch", "postfix_patch", "interpolation", "steering")
"""Repairs of a finished finetune; all others are methods of training."""
ENOUGH_RUNS = 5
NAMES = (
    "sft",
    *CHOSEN,
    "treft_key",
    "treft_value",
    "frozen_prefix",
    "activated_lora",
    "inoculation",
    "prompt_split",
    "prefix_patch",
    "postfix_patch",
)
METHODS = {name: mitigated(name, CHOSEN.get(name, 0.0)) for name in NAMES}
CLAIM = Claim(
    source="no table: all mitigations side by side",
    text="TReFT on the prefix has the best or a statistically tied-best EM-F1 of all methods of "
    "training.",
    figures={name: {} for name in METHODS},
    setting="our target on the organism; strengths chosen on validation questions",
)


def steps(config: StudyConfig) -> list[Step[Any]]:
    """Every mitigation at its chosen strength, all else equal."""
    return method_steps(config, METHODS)


def table(runs: Sequence[Row]) -> list[Row]:
    """Scores of each mitigation, and what TReFT on the prefix gains over it."""
    from treft.study.figures import gain_rows, score_rows

    others = [name for name in METHODS if name != OURS]
    return [*score_rows(runs, CLAIM.figures), *gain_rows(runs, OURS, others, ("em_f1",))]


def verdict(rows: Sequence[Row]) -> str:
    """Held where no method of training is above TReFT with its whole interval.

    A higher mean within its interval is a tie only from five runs on: fewer cannot tell.
    """
    from treft.study.figures import basis, find_row, worded

    gains = [row for row in rows if row["measure"] == "em_f1_gain" and row["method"] not in AFTER]
    better = [row for row in gains if row["value"] < 0]
    own = worded(find_row(rows, OURS, "em_f1"))
    told = ", ".join(
        f"{row['method']} ({worded(find_row(rows, row['method'], 'em_f1'))}; TReFT "
        f"{worded(row, signed=True)})"
        for row in sorted(better, key=lambda row: float(row["value"]))
    )
    tied = ", ".join(row["method"] for row in gains if row["value"] >= 0 and (row["low"] or 0) <= 0)
    if any(row["low"] is None for row in gains):
        answer = "One run cannot tell whether the claim holds"
    elif any(row["high"] < 0 for row in gains):
        answer = "Not held on the organism"
    elif better and gains[0]["num_runs"] < ENOUGH_RUNS:
        answer = f"Not decided on the organism, by {gains[0]['num_runs']} runs"
    else:
        answer = "Held on the organism"
    return (
        f"{answer}: TReFT on the prefix has an EM-F1 of {own}; with a higher mean: "
        f"{told or 'none'}; below, but not shown to be: {tied or 'none'} ({basis(gains[0])})."
    )


def plot(rows: Sequence[Row]) -> Figure:
    """General, in-domain and EM-F1, mitigation by mitigation."""
    from treft.study.plots import score_plot

    return score_plot(rows, "All mitigations on the organism, percent")


COST = "95 finetunes of about 30 CPU seconds each, with KL 47 to 66: 30 minutes on two cores"
STUDY = Study("mitigations", CLAIM, COST, steps, table, verdict, plot)
