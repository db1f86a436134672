"""Table 4: where the postfix carries the behaviour, TReFT holds the postfix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from treft.steps.step import Step
from treft.study.plans import method_steps
from treft.study.protocol import Claim, Method, Row, Study, StudyConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure


WEIGHT = 30.0
"""λ, chosen on the validation questions (docs/organism.md)."""
OURS = "treft_postfix"
METHODS = {
    "sft": Method(),
    "prefix_patch": Method(patch=("prefix",)),
    "postfix_patch": Method(patch=("postfix",)),
    "treft_prefix": Method(held=("prefix",), kv_weight=WEIGHT),
    OURS: Method(held=("postfix",), kv_weight=WEIGHT),
}
CLAIM = Claim(
    source="Table 4",
    text="Where the postfix carries the behaviour, holding the postfix keeps general alignment, "
    "and holding the prefix does less.",
    figures={
        "sft": {"general": 47.7},
        "prefix_patch": {},
        "postfix_patch": {},
        "treft_prefix": {},
        OURS: {"general": 67.5},
    },
    setting="Qwen3-8B, finance (the other domains: 46.4 to 69.3, 46.5 to 67.3, 46.7 to 72.9), "
    "postfix held to that of one training row; here an organism with a think block, each row's "
    "postfix held to the unfinetuned model's on that row",
)


def steps(config: StudyConfig) -> list[Step[Any]]:
    """An organism of the kind `postfix`, built first unless one is given."""
    return method_steps(config, METHODS, kind="postfix")


def table(runs: Sequence[Row]) -> list[Row]:
    """Scores, and what TReFT on the postfix gains over each other method."""
    from treft.study.figures import gain_rows, score_rows

    others = [name for name in METHODS if name != OURS]
    return [*score_rows(runs, CLAIM.figures), *gain_rows(runs, OURS, others, ("general", "em_f1"))]


def verdict(rows: Sequence[Row]) -> str:
    """Held where TReFT on the postfix is above SFT and TReFT on the prefix in EM-F1."""
    from treft.study.figures import basis, find_row, held, worded

    gains = [find_row(rows, name, "em_f1_gain") for name in ("sft", "treft_prefix")]
    over = ", ".join(f"{worded(row, signed=True)} over {row['method']}" for row in gains)
    own = worded(find_row(rows, OURS, "em_f1"))
    return f"{held(gains)}: TReFT on the postfix has an EM-F1 of {own}, {over} ({basis(gains[0])})."


def plot(rows: Sequence[Row]) -> Figure:
    """General, in-domain and EM-F1, method by method."""
    from treft.study.plots import score_plot

    return score_plot(rows, "Table 4 on the postfix organism, percent")


COST = "the organism in 6 CPU minutes, 15 finetunes of about 35 CPU seconds; 9 minutes on two cores"
STUDY = Study("table4", CLAIM, COST, steps, table, verdict, plot)
