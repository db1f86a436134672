"""Table 1: perturbing a region of the prompt; where alignment returns, its tokens carry EM."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from matplotlib.figure import Figure

from treft.study.attribution import What
from treft.study.claims import Listing
from treft.study.figures import (
    HELD,
    NOT_SHOWN,
    ONE_RUN,
    basis,
    figure_rows,
    find_row,
    gain_rows,
    with_further,
    worded,
)
from treft.study.plans import BASE, perturb_steps
from treft.study.plots import interval_plot
from treft.study.protocol import Row
from treft.study.studies import listed

UNPERTURBED, PREFIX = "unperturbed", "prefix"
OTHERS = ("query", "postfix", "rephrase")
ROWS: dict[str, What] = {
    UNPERTURBED: "nothing",
    PREFIX: "prefix",
    "query": "query",
    "postfix": "postfix",
    "rephrase": "rephrase",
}
MEASURES = ("best", "avg", "incoherent")
BROKEN = 50.0
"""Percent of incoherent answers of the base from which a perturbation says nothing."""


def table1_rows(runs: Sequence[Row], told: Listing) -> Sequence[Row]:
    """Best, Avg and incoherent answers of each row; then what perturbing the prefix adds.

    `best_gain` is that of the prefix over the row: over `unperturbed`, the control with as many
    answers, and over each other perturbation. Rows of the base begin with `base_`.
    """
    gains = gain_rows(runs, PREFIX, [UNPERTURBED, *OTHERS], ("best", "avg"))
    rows = [*figure_rows(runs, MEASURES, told.claim.figures), *gains]
    return with_further(rows, told.further)


def table1_verdict(rows: Sequence[Row]) -> str:
    """Held where Best under a perturbed prefix is above the control and all other rows.

    Rows whose perturbation leaves the base mostly incoherent cannot be compared.
    """
    lift = find_row(rows, UNPERTURBED, "best_gain")
    broken = [name for name in (PREFIX, *OTHERS) if _incoherence(rows, name) > BROKEN]
    compared = {name: find_row(rows, name, "best_gain") for name in OTHERS if name not in broken}
    unclear = [name for name, row in compared.items() if row["low"] is not None and row["low"] <= 0]
    if lift["low"] is None:
        answer = ONE_RUN
    elif lift["low"] <= 0 or PREFIX in broken:
        answer = NOT_SHOWN
    elif unclear:
        answer = f"{NOT_SHOWN} against {', '.join(unclear)}"
    elif broken:
        answer = f"Half of it held on the organism, nothing can be said of {', '.join(broken)}"
    else:
        answer = HELD
    own, control = (find_row(rows, name, "best") for name in (PREFIX, UNPERTURBED))
    parts = [
        f"{answer}: the best of ten versions with another prefix is aligned in {worded(own)} % of "
        f"prompts, in {worded(control)} % where nothing is replaced "
        f"({worded(lift, signed=True)}; {basis(lift)})"
    ]
    parts += [f"{worded(row, signed=True)} over {name}" for name, row in compared.items()]
    parts += [
        f"the base under a perturbed {name} is incoherent in {_incoherence(rows, name):.0f} % of "
        "answers, so that row says nothing"
        for name in broken
    ]
    return "; ".join(parts) + "."


def table1_plot(rows: Sequence[Row], title: str) -> Figure:
    """Best, Avg and incoherent answers, row by row, the base below the finetunes."""
    headings = {"best": "Best ↑", "avg": "Avg ↑", "incoherent": "incoherent"}
    return interval_plot(rows, title, headings)


def _incoherence(rows: Sequence[Row], name: str) -> float:
    """Returns the base's incoherent answers, percent."""
    return float(find_row(rows, f"{BASE}_{name}", "incoherent")["value"])


STUDIES = (
    listed("table1", partial(perturb_steps, rows=ROWS), table1_rows, table1_verdict, table1_plot),
)
