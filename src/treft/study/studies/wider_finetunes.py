"""§4.2's further finetunes: of four domains at once, and of all weights; prefix patched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from treft.steps.step import Step
from treft.study.plans import method_steps
from treft.study.protocol import Claim, Method, Row, Study, StudyConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure


FOUR = ("finance", "health", "legal", "auto")
FULL_RATE = 3e-4
"""Of the finetune of all weights."""
METHODS = {
    "four_domains_sft": Method(domains=FOUR),
    "four_domains_patch": Method(domains=FOUR, patch=("prefix",)),
    "all_weights_sft": Method(is_full=True, learning_rate=FULL_RATE),
    "all_weights_patch": Method(is_full=True, learning_rate=FULL_RATE, patch=("prefix",)),
}
KINDS = ("four_domains", "all_weights")
CLAIM = Claim(
    source="§4.2, four domains and all weights",
    text="Patching the prefix raises general alignment also after a finetune on four domains at "
    "once, and after one of all weights instead of a LoRA.",
    figures={
        "four_domains_sft": {"general": 38.7},
        "four_domains_patch": {"general": 90.2},
        "all_weights_sft": {"general": 53.1},
        "all_weights_patch": {"general": 89.6},
    },
    setting="four domains: Llama-3.1-8B; all weights: Qwen2.5-3B (Llama-3.2-1B: 49.1 to 80.6)",
)


def steps(config: StudyConfig) -> list[Step[Any]]:
    """Both finetunes, with and without the patch; as many rows and steps as any other."""
    return method_steps(config, METHODS)


def table(runs: Sequence[Row]) -> list[Row]:
    """Scores, and what the patch gains."""
    from treft.study.figures import gain_rows, score_rows

    rows: list[Row] = [*score_rows(runs, CLAIM.figures)]
    for kind in KINDS:
        rows += gain_rows(runs, f"{kind}_patch", [f"{kind}_sft"], ("general", "in_domain"))
    return rows


def verdict(rows: Sequence[Row]) -> str:
    """Held where both patches gain general alignment with their whole interval."""
    from treft.study.figures import held, patches_told

    gains = [row for row in rows if row["measure"] == "general_gain"]
    return f"{held(gains)}: {patches_told(rows, gains)}."


def plot(rows: Sequence[Row]) -> Figure:
    """General, in-domain and EM-F1, finetune by finetune."""
    from treft.study.plots import score_plot

    return score_plot(rows, "Wider finetunes of the organism, percent")


COST = "10 finetunes of about 28 CPU seconds each: 3 minutes on two cores"
STUDY = Study("wider_finetunes", CLAIM, COST, steps, table, verdict, plot)
