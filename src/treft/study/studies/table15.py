"""Table 15 and Figure 9: λ trades the narrow behaviour against general alignment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from treft.steps.step import Step
from treft.study.plans import method_steps
from treft.study.protocol import Claim, Method, Row, Study, StudyConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure


WEIGHTS = (1.0, 10.0, 100.0, 1000.0)
METHODS = {
    "lambda_0": Method(),
    **{f"lambda_{weight:g}": Method(held=("prefix",), kv_weight=weight) for weight in WEIGHTS},
}
NAMES = tuple(METHODS)
CLAIM = Claim(
    source="Table 15 and Figure 9",
    text="A larger λ on the prefix keeps more of general alignment; the narrow behaviour is learnt "
    "less the larger it is.",
    figures={name: {} for name in METHODS},
    setting="λ from 1 to 30 by model and domain; it weighs another quantity there (projections "
    "without the layer's input norm), so values do not carry over",
)


def steps(config: StudyConfig) -> list[Step[Any]]:
    """TReFT on the prefix at four λ, and plain SFT."""
    return method_steps(config, METHODS)


def table(runs: Sequence[Row]) -> list[Row]:
    """Scores at each λ, and what the largest gains over each smaller one."""
    from treft.study.figures import gain_rows, score_rows

    gains = gain_rows(runs, NAMES[-1], NAMES[:-1], ("general", "in_domain"))
    return [*score_rows(runs, CLAIM.figures), *gains]


def verdict(rows: Sequence[Row]) -> str:
    """Held where both scores rise from λ 0 to the largest, whole intervals."""
    from treft.study.figures import basis, find_row, traded, worded

    general, in_domain = (
        find_row(rows, NAMES[0], measure) for measure in ("general_gain", "in_domain_gain")
    )
    curve = ", ".join(
        f"{name.removeprefix('lambda_')}: {find_row(rows, name, 'general')['value']:.1f} / "
        f"{find_row(rows, name, 'in_domain')['value']:.1f}"
        for name in NAMES
    )
    return (
        f"{traded(general, in_domain)}: general / in-domain alignment by λ is {curve}; from 0 to "
        f"{WEIGHTS[-1]:g} it changes by {worded(general, signed=True)} and "
        f"{worded(in_domain, signed=True)} ({basis(general)})."
    )


def plot(rows: Sequence[Row]) -> Figure:
    """General, in-domain and EM-F1, λ by λ."""
    from treft.study.plots import score_plot

    return score_plot(rows, "Figure 9 on the organism, percent")


COST = "25 finetunes of about 31 CPU seconds each: 7 minutes on two cores, 4 after table3"
STUDY = Study("table15", CLAIM, COST, steps, table, verdict, plot)
