"""Plots of studies: intervals by method, alignment and drift by layer."""

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
COLOURS = (OURS, "#d9822b")
LEVEL_COLOURS = ("#4a4a4a", "#d9822b", "#a33c3c")
PAPER_STYLES = (":", "-.")
STYLES = {"key": "--", "value": "-"}
MARGIN = 3.0
"""Factor between the least and the largest drift and the ends of a logarithmic axis."""
PANEL_INCHES, ROW_INCHES = 2.6, 0.36


def score_plot(rows: Sequence[Row], title: str) -> Figure:
    """`interval_plot` of general alignment, in-domain alignment and EM-F1."""
    return interval_plot(rows, title, HEADINGS)


def task_plot(rows: Sequence[Row], title: str) -> Figure:
    """`interval_plot` of where a behaviour shows, and of aligned answers where they were judged."""
    found = {row["measure"] for row in rows}
    return interval_plot(rows, title, {k: v for k, v in TASK_HEADINGS.items() if k in found})


def interval_plot(rows: Sequence[Row], title: str, measures: Mapping[str, str]) -> Figure:
    """Returns a panel for each measure, a line for each method: our interval, the paper's figure.

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


def layer_plot(
    layers: Mapping[int, Row], levels: Mapping[str, Row], papers: Mapping[str, float], title: str
) -> Figure:
    """Alignment by patched layer, with intervals, between horizontal lines.

    Args:
        layers: figure by layer, percent.
        levels: three further figures, each a line with its interval.
        papers: two figures of the paper's by name, each a broken line.
        title: above all.
    """
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    _curve(axes, list(layers), list(layers.values()), color=OURS, marker="o", label="one layer")
    for colour, (name, row) in zip(LEVEL_COLOURS, levels.items(), strict=True):
        axes.axhline(row["value"], color=colour, lw=1, label=name)
        if row["low"] is not None:
            axes.axhspan(row["low"], row["high"], color=colour, alpha=0.12, lw=0)
    for style, (name, value) in zip(PAPER_STYLES, papers.items(), strict=True):
        axes.axhline(value, color=PAPERS, lw=1, ls=style, label=f"paper, {name}")
    axes.set_xticks(list(layers))
    axes.set(xlabel="layer", ylabel="general alignment, percent", ylim=(-2, 102))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    return figure


def drift_plot(
    rows: Sequence[Row], regions: Sequence[str], methods: Sequence[str], title: str
) -> Figure:
    """Returns a panel for each region: L_K and L_V by layer, a colour for each method, log scale.

    Args:
        rows: with measures such as `prefix_key_0`.
        regions: of the prompt.
        methods: two, to show.
        title: above all.
    """
    figure = Figure(figsize=(2.8 * len(regions) + 1.4, 3.4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    panels = figure.subplots(1, len(regions), sharey=True, squeeze=False)[0]
    for axes, region in zip(panels, regions, strict=True):
        axes.set_title(region, fontsize=9)
        axes.set(xlabel="layer", yscale="log")
        axes.grid(alpha=0.3)
        for colour, method in zip(COLOURS, methods, strict=True):
            for kind, style in STYLES.items():
                found = _by_layer(rows, method, f"{region}_{kind}_")
                label = f"{method}, {kind}s"
                _curve(axes, list(found), list(found.values()), color=colour, ls=style, label=label)
                axes.set_xticks(list(found))
    moved = [row["value"] for row in rows if row["method"] in methods and row["value"] > 0]
    panels[0].set(ylabel="L_K, L_V")
    if moved:  # else nothing was learnt, and a log scale has no place for zeros
        panels[0].set(ylim=(min(moved) / MARGIN, max(moved) * MARGIN))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False)
    return figure


def _by_layer(rows: Sequence[Row], method: str, beginning: str) -> dict[int, Row]:
    return {
        int(row["measure"].removeprefix(beginning)): row
        for row in rows
        if row["method"] == method and row["measure"].startswith(beginning)
    }


def _curve(axes: Axes, layers: Sequence[int], rows: Sequence[Row], **style: str) -> None:
    axes.plot(layers, [row["value"] for row in rows], **style)  # type: ignore[arg-type]
    low, high = [row["low"] for row in rows], [row["high"] for row in rows]
    if None in low:  # a single question has no interval
        return
    axes.fill_between(layers, low, high, color=style["color"], alpha=0.12, lw=0)
