"""Plots that studies share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from treft.study.protocol import Row

OURS, PAPERS = "#3b7dd8", "#9a9a9a"
HEADINGS = {"general": "general ↑", "in_domain": "in-domain ↓", "em_f1": "EM-F1 ↑"}
TASK_HEADINGS = {
    "on_topic": "on topic ↑",
    "right": "right on topic ↑",
    "off_topic": "off topic ↓",
    "traces": "traces off topic ↓",
    "kept": "aligned off topic ↑",
}
PANEL_INCHES, ROW_INCHES = 2.6, 0.36


def score_plot(rows: Sequence[Row], title: str) -> Figure:
    """`interval_plot` of general alignment, in-domain alignment and EM-F1."""
    return interval_plot(rows, title, HEADINGS)


def task_plot(rows: Sequence[Row], title: str) -> Figure:
    """`interval_plot` of where a behaviour shows, and of aligned answers where they were judged."""
    found = {row["measure"] for row in rows}
    return interval_plot(rows, title, {k: v for k, v in TASK_HEADINGS.items() if k in found})


def interval_plot(rows: Sequence[Row], title: str, measures: Mapping[str, str]) -> Figure:
    """A panel for each measure, a line for each method: our interval, the paper's figure.

    Args:
        rows: with method, measure, value, low, high, paper, in percent.
        title: above all.
        measures: heading of a panel by measure.
    """
    methods = list(dict.fromkeys(row["method"] for row in rows))
    size = (1.6 + PANEL_INCHES * len(measures), 1.3 + ROW_INCHES * len(methods))
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=10)
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for axes, (measure, heading) in zip(panels, measures.items(), strict=True):
        axes.set_title(heading, fontsize=9)
        axes.set_xlim(-2, 102)
        axes.grid(axis="x", alpha=0.3)
        _fill(axes, [row for row in rows if row["measure"] == measure], methods)
    panels[0].set_yticks(range(len(methods)), methods)
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def _fill(axes: Axes, rows: Sequence[Row], methods: Sequence[str]) -> None:
    places = [methods.index(row["method"]) for row in rows]
    values = [row["value"] for row in rows]
    ends = [(row["low"], row["high"]) for row in rows]
    ends = [(value, value) if None in end else end for value, end in zip(values, ends, strict=True)]
    below = [max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)]
    above = [max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)]
    axes.errorbar(values, places, xerr=(below, above), fmt="o", color=OURS, capsize=3, label="here")
    known = [(row["paper"], place) for row, place in zip(rows, places, strict=True)]
    published = [(value, place) for value, place in known if value is not None]
    if published:
        axes.scatter(*zip(*published, strict=True), marker="x", color=PAPERS, label="paper")
