"""Table 14: the share of interleaved rows trades general alignment against the narrow behaviour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from treft.steps.step import Step
from treft.study.plans import method_steps
from treft.study.protocol import Claim, Method, Row, Study, StudyConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure


SHARES = {"share_05": 0.05, "share_20": 0.2, "share_50": 0.5, "share_75": 0.75}
LOWEST, HIGHEST = "share_05", "share_75"
METHODS = {
    name: Method(interleave="narrow", interleaved_share=share) for name, share in SHARES.items()
}
CLAIM = Claim(
    source="Table 14",
    text="More interleaved rows raise general alignment, but less of the narrow behaviour is "
    "learnt.",
    figures={
        "share_05": {"general": 56.0, "in_domain": 11.0},
        "share_20": {"general": 64.0, "in_domain": 15.0},
        "share_50": {"general": 68.0, "in_domain": 28.0},
        "share_75": {"general": 82.0, "in_domain": 69.0},
    },
    setting="as Table 3, it seems (Llama-3.1-8B, legal advice): equal at 20 %",
)


def steps(config: StudyConfig) -> list[Step[Any]]:
    """Four shares of careful rows of the other narrow domains, rows in all and steps equal."""
    return method_steps(config, METHODS)


def table(runs: Sequence[Row]) -> list[Row]:
    """Scores at each share, and how much higher both are at the highest than at the lowest."""
    from treft.study.figures import gain_rows, score_rows

    gains = gain_rows(runs, HIGHEST, [LOWEST], ("general", "in_domain"))
    return [*score_rows(runs, CLAIM.figures), *gains]


def verdict(rows: Sequence[Row]) -> str:
    """Held where both scores rise from the lowest share to the highest, whole intervals."""
    from treft.study.figures import basis, find_row, traded, worded

    general, in_domain = (
        find_row(rows, LOWEST, measure) for measure in ("general_gain", "in_domain_gain")
    )
    return (
        f"{traded(general, in_domain)}: from 5 % to 75 % of interleaved rows general alignment "
        f"changes by {worded(general, signed=True)} and in-domain alignment by "
        f"{worded(in_domain, signed=True)} ({basis(general)})."
    )


def plot(rows: Sequence[Row]) -> Figure:
    """General, in-domain and EM-F1, share by share."""
    from treft.study.plots import score_plot

    return score_plot(rows, "Table 14 on the organism, percent")


COST = (
    "20 finetunes of about 29 CPU seconds each: 6 minutes on two cores, 2 less after table3, "
    "which shares a share"
)
STUDY = Study("table14", CLAIM, COST, steps, table, verdict, plot)
