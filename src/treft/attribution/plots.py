"""Plots of a diagnosis as inline SVG: shares by region, curves over layers, drift over layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from treft.evaluation.report.plots import STYLE, to_svg
from treft.statistics.intervals import Interval

COLOURS = {"prefix": "#3b7dd8", "query": "#d9a324", "postfix": "#8a5cc9"}
OTHER = "#8a8f98"
ROW_INCHES = 0.32


def bar_plot(shares: Mapping[str, Interval], label: str) -> str:
    """A bar with its interval for each name; regions have the colours of the rendered prompt.

    Args:
        shares: values by name, 1 = everything.
        label: of the axis.
    """
    with rc_context(STYLE):
        canvas = Canvas(figsize=(7.0, 0.9 + ROW_INCHES * len(shares)), layout="constrained")
        axis: Axes = canvas.subplots()
        for row, (name, share) in enumerate(shares.items()):
            axis.barh(row, 100 * share.mean, 0.7, color=_colour(name))
            axis.errorbar(100 * share.mean, row, xerr=_reach(share), color=OTHER, capsize=2.5)
        axis.set_yticks(range(len(shares)), list(shares))
        axis.set_ylim(len(shares) - 0.5, -0.5)
        axis.axvline(0, color=OTHER, linewidth=0.8)
        axis.set_xlabel(label)
        _plain(axis)
        return to_svg(canvas)


def layer_plot(
    curves: Mapping[str, Sequence[tuple[int, Interval]]],
    label: str,
    levels: Mapping[str, float] | None = None,
    scale: float = 1.0,
) -> str:
    """Curves over layers, with the band of their intervals.

    Args:
        curves: points by name; layers count from 0.
        label: of the values.
        levels: horizontal lines by name, such as the base's and the finetuned model's score.
        scale: by which values are multiplied (100 for shares in percent).
    """
    with rc_context(STYLE):
        canvas = Canvas(figsize=(7.0, 2.8), layout="constrained")
        axis: Axes = canvas.subplots()
        for name, points in curves.items():
            layers = [layer for layer, _ in points]
            mean, low, high = (
                [scale * getattr(value, part) for _, value in points]
                for part in ("mean", "low", "high")
            )
            axis.plot(layers, mean, "o-", markersize=3, color=_colour(name), label=name)
            axis.fill_between(layers, low, high, color=_colour(name), alpha=0.2, linewidth=0)
            axis.set_xticks(layers)
        for name, level in (levels or {}).items():
            axis.axhline(level, color=OTHER, linewidth=0.8, linestyle="--")
            axis.annotate(name, (0, level), fontsize=8, va="bottom")
        axis.set_xlabel("layer, from 0")
        axis.set_ylabel(label)
        if len(curves) > 1:
            axis.legend(frameon=False, fontsize=8)
        _plain(axis)
        return to_svg(canvas)


def _reach(share: Interval) -> list[list[float]]:
    return [[100 * max(0.0, share.mean - share.low)], [100 * max(0.0, share.high - share.mean)]]


def _colour(name: str) -> str:
    """That of the region a name begins with."""
    return next((colour for region, colour in COLOURS.items() if name.startswith(region)), OTHER)


def _plain(axis: Axes) -> None:
    axis.set_facecolor("none")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#8888", linewidth=0.5)
    axis.set_axisbelow(True)
