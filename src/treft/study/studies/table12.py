"""Table 12: which retain set is interleaved decides what it protects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from treft.steps.step import Step
from treft.study.plans import method_steps
from treft.study.protocol import Claim, Method, Row, Study, StudyConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure


METHODS = {
    "sft": Method(),
    "single_domain": Method(interleave="auto"),
    "multi_domain": Method(interleave="narrow"),
    "general_set": Method(interleave="general"),
    "treft_prefix": Method(held=("prefix",)),
}
RETAIN_SETS = ("single_domain", "multi_domain", "general_set")
CLAIM = Claim(
    source="Table 12",
    text="What interleaving achieves depends on the retain set: general alignment and the narrow "
    "behaviour both differ between sets, so that a set must be chosen; TReFT needs none.",
    figures={
        "sft": {},
        "single_domain": {"general": 89.0, "in_domain": 55.6},
        "multi_domain": {"general": 77.1, "in_domain": 26.9},
        "general_set": {"general": 64.5, "in_domain": 20.3},
        "treft_prefix": {},
    },
    setting="single domain: auto only; general set: Alpaca, here careful rows of the general "
    "domains, which are the ones evaluated",
)


def steps(config: StudyConfig) -> list[Step[Any]]:
    """20 % of careful rows from each set, rows in all and steps equal; SFT and TReFT beside."""
    return method_steps(config, METHODS)


def table(runs: Sequence[Row]) -> list[Row]:
    """Scores of each set, and how far the multi-domain set is from the two others."""
    from treft.study.figures import gain_rows, score_rows

    others = ["single_domain", "general_set"]
    gains = gain_rows(runs, "multi_domain", others, ("general", "in_domain", "em_f1"))
    return [*score_rows(runs, CLAIM.figures), *gains]


def verdict(rows: Sequence[Row]) -> str:
    """Held where general alignment differs from the multi-domain set's, whole intervals."""
    from treft.study.figures import basis, find_row, worded

    gains = [find_row(rows, name, "general_gain") for name in ("single_domain", "general_set")]
    if any(row["low"] is None for row in gains):
        answer = "One run cannot tell whether the claim holds"
    else:
        differ = [row["method"] for row in gains if row["low"] > 0 or row["high"] < 0]
        answer = {
            0: "Not shown on the organism",
            1: f"Partly held on the organism ({', '.join(differ)} differs)",
            2: "Held on the organism",
        }[len(differ)]
    told = "; ".join(
        f"{name} {worded(find_row(rows, name, 'general'))} general and "
        f"{worded(find_row(rows, name, 'in_domain'))} in-domain"
        for name in RETAIN_SETS
    )
    changes = ", ".join(f"{worded(row, signed=True)} over {row['method']}" for row in gains)
    return (
        f"{answer}: {told}; general alignment of the multi-domain set is {changes} "
        f"({basis(gains[0])})."
    )


def plot(rows: Sequence[Row]) -> Figure:
    """General, in-domain and EM-F1, set by set."""
    from treft.study.plots import score_plot

    return score_plot(rows, "Table 12 on the organism, percent")


COST = "25 finetunes of about 30 CPU seconds each: 7 minutes on two cores, 3 after table3"
STUDY = Study("table12", CLAIM, COST, steps, table, verdict, plot)
