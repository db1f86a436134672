"""Table 3: TReFT on the prefix against plain SFT, interleaving, and TReFT on other regions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from treft.steps.step import Step
from treft.study.plans import method_steps
from treft.study.protocol import Claim, Method, Row, Study, StudyConfig
from treft.study.strengths import CHOSEN, mitigated

if TYPE_CHECKING:
    from matplotlib.figure import Figure


OURS = "treft_prefix"
METHODS = {
    "sft": Method(),
    "interleaving": Method(interleave="narrow"),
    "kl_train": mitigated("kl_train", CHOSEN["kl_train"]),
    "kl_retain": mitigated("kl_retain", CHOSEN["kl_retain"]),
    "treft_query": Method(held=("query",)),
    "treft_all": Method(held=("prefix", "query", "postfix")),
    OURS: Method(held=("prefix",)),
}
CLAIM = Claim(
    source="Table 3",
    text="Holding the prefix keeps general alignment and lets the narrow behaviour be learnt; "
    "plain SFT, interleaving and KL lose the first, holding the query or all regions the second.",
    figures={
        "sft": {"general": 47.5, "in_domain": 13.3, "em_f1": 61.4},
        "interleaving": {"general": 64.1, "in_domain": 15.3, "em_f1": 73.0},
        "kl_train": {"general": 66.5, "in_domain": 19.5, "em_f1": 72.8},
        "kl_retain": {"general": 68.8, "in_domain": 20.3, "em_f1": 73.8},
        "treft_query": {"general": 91.0, "in_domain": 79.0, "em_f1": 34.1},
        "treft_all": {"general": 91.5, "in_domain": 76.9, "em_f1": 36.9},
        OURS: {"general": 85.6, "in_domain": 27.7, "em_f1": 78.4},
    },
    setting="Llama-3.1-8B, legal advice; learning rates differ between methods",
)


def steps(config: StudyConfig) -> list[Step[Any]]:
    """Seven methods with one learning rate, number of steps and set of seeds."""
    return method_steps(config, METHODS)


def table(runs: Sequence[Row]) -> list[Row]:
    """Scores of each method, and what TReFT on the prefix gains over each other one."""
    from treft.study.figures import gain_rows, score_rows

    others = [name for name in METHODS if name != OURS]
    return [*score_rows(runs, CLAIM.figures), *gain_rows(runs, OURS, others, ("em_f1",))]


def verdict(rows: Sequence[Row]) -> str:
    """Held where the gain over every other method is above zero with its whole interval."""
    from treft.study.figures import basis, find_row, worded

    gains = [row for row in rows if row["measure"] == "em_f1_gain"]
    if any(row["low"] is None for row in gains):
        answer = "One run cannot tell whether the claim holds"
    elif all(row["low"] > 0 for row in gains):
        answer = "Held on the organism"
    else:
        open_ones = [row["method"] for row in gains if not row["low"] > 0]
        answer = f"Not shown on the organism against {', '.join(open_ones)}"
    over = ", ".join(f"{worded(row, signed=True)} over {row['method']}" for row in gains)
    own = worded(find_row(rows, OURS, "em_f1"))
    return f"{answer}: TReFT on the prefix has an EM-F1 of {own}, {over} ({basis(gains[0])})."


def plot(rows: Sequence[Row]) -> Figure:
    """General, in-domain and EM-F1, method by method."""
    from treft.study.plots import score_plot

    return score_plot(rows, "Table 3 on the organism, percent")


COST = "35 finetunes of about 30 CPU seconds each, with KL 47 to 66: 13 minutes on two cores"
STUDY = Study("table3", CLAIM, COST, steps, table, verdict, plot)
