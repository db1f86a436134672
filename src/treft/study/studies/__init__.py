"""One file a family of claims: how their steps, table, verdict and plot are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure

from treft.steps.step import Step
from treft.study.claims import Listing, listings
from treft.study.figures import MEASURES, measured, score_rows
from treft.study.plots import score_plot
from treft.study.protocol import Row, Study, StudyConfig

__all__ = ["Gains", "listed", "scored"]

Gains = Callable[[Sequence[Row]], Sequence[Row]]
"""Makes rows of the table that compare methods."""


def listed(
    name: str,
    steps: Callable[[StudyConfig], Sequence[Step[Any]]],
    table: Callable[[Sequence[Row], Listing], Sequence[Row]],
    verdict: Callable[[Sequence[Row]], str],
    plot: Callable[[Sequence[Row], str], Figure] = score_plot,
) -> Study:
    """Returns a study with what `claims.yaml` says of it.

    Args:
        name: Of the study.
        steps: As in `Study`.
        table: Takes the objects of all `row.json`, and the listing for the paper's figures.
        verdict: As in `Study`.
        plot: Takes the table's rows and the title.
    """
    told = listings()[name]
    return Study(
        name,
        told.claim,
        told.cost,
        steps,
        lambda runs: list(table(runs, told)),
        verdict,
        lambda rows: plot(rows, told.title),
    )


def scored(
    *gains: Gains, measures: Sequence[str] = MEASURES
) -> Callable[[Sequence[Row], Listing], Sequence[Row]]:
    """Returns a table of the scores of all methods beside the paper's, then the gains given."""

    def table(runs: Sequence[Row], told: Listing) -> Sequence[Row]:
        rows = score_rows(runs, told.claim.figures, measured(runs, measures))
        return [*rows, *(row for gain in gains for row in gain(runs))]

    return table
