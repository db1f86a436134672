"""Plots by layer: alignment under a patch of each, and drift of keys and values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from treft.study.plots import OURS, PAPERS
from treft.study.protocol import Row

COLOURS = (OURS, "#d9822b")
LEVEL_COLOURS = ("#4a4a4a", "#d9822b", "#a33c3c")
PAPER_STYLES = (":", "-.")
STYLES = {"key": "--", "value": "-"}
MARGIN = 3.0
"""Factor between the least and the largest drift and the ends of a logarithmic axis."""


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
    """A panel for each region: L_K and L_V by layer, a colour for each method, log scale.

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
