"""Equations (2) and (3): where a finetune moves keys and values, with and without a held prefix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from treft.steps.step import Step
from treft.study.attribution import REGIONS
from treft.study.plans import drift_steps
from treft.study.protocol import Claim, Method, Row, Study, StudyConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure


SFT, OURS = "sft", "treft_prefix"
METHODS = {SFT: Method(), OURS: Method(held=("prefix",))}
CLAIM = Claim(
    source="Section 5, equations (2) and (3)",
    text="TReFT on the prefix keeps the prefix's keys and values near the initial model's, where "
    "plain SFT moves them.",
    figures={SFT: {}, OURS: {}},
    setting="no figure of the paper's is compared with",
)


def steps(config: StudyConfig) -> list[Step[Any]]:
    """Plain finetunes and TReFT on the prefix, on the prompts of general questions."""
    return drift_steps(config, METHODS)


def table(runs: Sequence[Row]) -> list[Row]:
    """L_KV of each region, L_K and L_V of each layer (`prefix_key_0`), and what SFT has more.

    Dimensionless. `…_gain` is that of SFT over TReFT, in the latter's row.
    """
    from treft.study.attribution_figures import figure_rows
    from treft.study.figures import gain_rows

    measures = [name for name in runs[0] if name.startswith(REGIONS) and f"{name}_low" in runs[0]]
    return [
        *figure_rows(runs, measures, CLAIM.figures, highest=float("inf")),
        *gain_rows(runs, SFT, (OURS,), REGIONS),
    ]


def verdict(rows: Sequence[Row]) -> str:
    """Held where SFT surely moves the prefix further than TReFT does."""
    from treft.study.figures import find_row, held

    gain = find_row(rows, OURS, "prefix_gain")
    parts = ", ".join(
        f"{_worded(find_row(rows, OURS, region))} at the {region} against "
        f"{_worded(find_row(rows, SFT, region))}"
        for region in REGIONS
    )
    unit = "one run" if gain["num_runs"] == 1 else f"{gain['num_runs']} runs, 95 % intervals"
    return f"{held([gain])}: after TReFT on the prefix L_KV is {parts} after SFT ({unit})."


def plot(rows: Sequence[Row]) -> Figure:
    """A panel for each region: keys and values by layer, for both methods."""
    from treft.study.attribution_plots import drift_plot

    return drift_plot(rows, REGIONS, (SFT, OURS), "Drift of keys and values on the organism")


def _worded(row: Row) -> str:
    return f"{row['value']:.2g} [{row['low']:.2g}, {row['high']:.2g}]"


COST = (
    "10 finetunes of about 30 CPU seconds each, five of them shared with other studies, and 2 CPU "
    "seconds each for their drift: 3 minutes on two cores"
)
STUDY = Study("drift", CLAIM, COST, steps, table, verdict, plot)
