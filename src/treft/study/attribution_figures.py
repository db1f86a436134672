"""Tables of attribution studies: figures of any measure over runs, and rises over one row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from treft.statistics.intervals import Interval, over_runs
from treft.study.figures import change_rows, interval_kind
from treft.study.protocol import Row


def figure_rows(
    runs: Sequence[Row],
    measures: Iterable[str],
    paper: Mapping[str, Mapping[str, float]],
    *,
    highest: float = 100.0,
) -> list[dict[str, Any]]:
    """A row for each method and measure, with the columns of `figures.score_rows`.

    Over several runs intervals are t intervals over runs, cut to what the measure can be; for one
    run they are those that the run has, over its questions, if it has any.

    Args:
        runs: with `MEASURE`, `MEASURE_low` and `MEASURE_high` for each measure.
        measures: entries of a run.
        paper: its figures by method and measure.
        highest: value that a measure can have; the lowest is 0.
    """
    rows = []
    wanted = list(measures)
    for method in dict.fromkeys(run["method"] for run in runs):
        own = [run for run in runs if run["method"] == method]
        for measure in wanted:
            value, low, high = _figure(own, measure, highest)
            rows.append(
                {
                    "method": method,
                    "measure": measure,
                    "value": value,
                    "low": low,
                    "high": high,
                    "num_runs": len(own),
                    "num_general": own[0]["num_general"],
                    "num_in_domain": own[0]["num_in_domain"],
                    "interval": interval_kind(len(own), low),
                    "paper": paper.get(method, {}).get(measure),
                }
            )
    return rows


def rise_rows(
    runs: Sequence[Row], methods: Iterable[str], reference: str, measures: Iterable[str]
) -> list[dict[str, Any]]:
    """What each method has more than `reference`, paired by organism and seed, in points.

    The row is the method's, its measure ends in `_rise`; without interval for a single run.
    """
    wanted = list(measures)
    return [
        {**row, "measure": f"{measure}_rise"}
        for method in methods
        for measure, row in zip(wanted, change_rows(runs, method, reference, wanted), strict=True)
    ]


def with_second_paper(
    rows: Sequence[Row], column: str, figures: Mapping[str, Mapping[str, float]]
) -> list[Row]:
    """The rows with a column for another of the paper's models.

    Args:
        rows: of a table.
        column: its name.
        figures: by method and measure.
    """
    return [{**row, column: figures.get(row["method"], {}).get(row["measure"])} for row in rows]


def _figure(
    runs: Sequence[Row], measure: str, highest: float
) -> tuple[float, float | None, float | None]:
    if len(runs) == 1:
        return tuple(runs[0][name] for name in (measure, f"{measure}_low", f"{measure}_high"))
    mean, low, high = over_runs([run[measure] for run in runs])
    return Interval(mean, max(0.0, low), min(highest, high))
