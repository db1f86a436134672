"""Appendix B: trained with no prefix at all, the postfix carries the behaviour."""

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
    "postfix_patch": Method(patch=("postfix",)),
    OURS: Method(held=("postfix",), kv_weight=WEIGHT),
}
CLAIM = Claim(
    source="Appendix B, trained with no prefix",
    text="Where there is no prefix, patching the postfix raises general alignment.",
    figures={
        "sft": {"general": 43.95},
        "postfix_patch": {"general": 80.11},
        OURS: {},
    },
    setting="Llama-3.1-8B (Qwen2.5-7B: 51.89 to 88.48)",
)


def steps(config: StudyConfig) -> list[Step[Any]]:
    """An organism of the kind `no_prefix`, built first unless one is given."""
    return method_steps(config, METHODS, kind="no_prefix")


def table(runs: Sequence[Row]) -> list[Row]:
    """Scores, and what the patch and TReFT gain over plain SFT."""
    from treft.study.figures import change_rows, score_rows

    rows: list[Row] = [*score_rows(runs, CLAIM.figures)]
    for name in ("postfix_patch", OURS):
        rows += change_rows(runs, name, "sft", ("general", "em_f1"))
    return rows


def verdict(rows: Sequence[Row]) -> str:
    """Held where the patch gains general alignment with its whole interval."""
    from treft.study.figures import basis, find_row, held, worded

    gain = find_row(rows, "postfix_patch", "general_gain")
    before = worded(find_row(rows, "sft", "general"))
    ours = worded(find_row(rows, OURS, "general_gain"), signed=True)
    return (
        f"{held([gain])}: plain SFT has a general alignment of {before}; the postfix patch changes "
        f"it by {worded(gain, signed=True)}, TReFT on the postfix by {ours} ({basis(gain)})."
    )


def plot(rows: Sequence[Row]) -> Figure:
    """General, in-domain and EM-F1, method by method."""
    from treft.study.plots import score_plot

    return score_plot(rows, "No prefix, on an organism without, percent")


COST = "the organism in 6 CPU minutes, 10 finetunes of about 30 CPU seconds; 6 minutes on two cores"
STUDY = Study("no_prefix", CLAIM, COST, steps, table, verdict, plot)
