"""Plots of a comparison as inline SVG that takes its text colour from the page."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas

from treft.evaluation.columns import Column
from treft.evaluation.compare import Comparison
from treft.evaluation.report.tables import VERDICTS, count_verdicts, figure_title, set_title

INK = "#010203"
"""Stands for the page's text colour while matplotlib draws."""

JUDGE_COLOURS = ("#3b7dd8", "#d98324", "#4f9d5d", "#a05cc9", "#b8474f", "#5aa3a8")
VERDICT_COLOURS = {
    "aligned": "#3f8fb5",
    "misaligned": "#d0543f",
    "incoherent": "#9a9a9a",
    "refusal": "#d9a324",
    "code": "#7f6bc4",
    "missing": "#c9c9c9",
}

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "treft",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
    ),
}

ROW_INCHES, PANEL_INCHES = 0.34, 2.3


def interval_plot(comparison: Comparison, columns: Sequence[Column]) -> str:
    """Returns each figure with its interval: a panel a kind of figure, a colour a judge.

    Args:
        comparison: gives arms and judges.
        columns: figures in percent.
    """
    panels: dict[str, list[Column]] = {}
    for column in columns:
        panels.setdefault(figure_title(column.figure), []).append(column)
    with rc_context(STYLE):
        canvas, axes = _panels(len(comparison.arms), list(panels))
        for axis, columns_of_panel in zip(axes, panels.values(), strict=True):
            for column in columns_of_panel:
                _draw_intervals(axis, comparison, column, len(columns_of_panel))
            axis.set_xlim(-2, 102)
            axis.grid(axis="x", color="#8888", linewidth=0.5)
        _label_arms(axes, comparison.labels)
        if len({column.figure.seen_by for column in columns if column.figure.is_judged}) > 1:
            _legend(canvas, axes[0])
        return to_svg(canvas)


def _draw_intervals(
    axis: Axes, comparison: Comparison, column: Column, num_side_by_side: int
) -> None:
    judge = column.figure.seen_by
    place = comparison.judges.index(judge) if judge in comparison.judges else 0
    shift = (place - (len(comparison.judges) - 1) / 2) * 0.22 if num_side_by_side > 1 else 0.0
    rows = [row for row, label in enumerate(comparison.labels) if label in column.results]
    results = [column.results[comparison.labels[row]] for row in rows]
    lows = [result.value if result.low is None else result.low for result in results]
    highs = [result.value if result.high is None else result.high for result in results]
    values = [result.value for result in results]
    errors = [
        [max(0.0, value - low) for value, low in zip(values, lows, strict=True)],
        [max(0.0, high - value) for value, high in zip(values, highs, strict=True)],
    ]
    axis.errorbar(
        values,
        [row + shift for row in rows],
        xerr=errors,
        fmt="o",
        markersize=4,
        capsize=2.5,
        color=JUDGE_COLOURS[place % len(JUDGE_COLOURS)],
        label=judge,
    )


def verdict_plot(comparison: Comparison, judge: str) -> str:
    """Returns the share of each verdict by one judge, a panel for each question set."""
    sets: dict[str, dict[str, dict[str, int]]] = {}
    for arm in comparison.arms:
        for name, answers in arm.sets.items():
            if any(answer.judged_by(judge) for answer in answers):
                counts = count_verdicts(answers, judge, comparison.thresholds)
                sets.setdefault(name, {})[arm.label] = counts
    with rc_context(STYLE):
        canvas, axes = _panels(len(comparison.arms), list(map(set_title, sets)), 3.4)
        for axis, by_arm in zip(axes, sets.values(), strict=True):
            _draw_shares(axis, comparison.labels, by_arm)
        _label_arms(axes, comparison.labels)
        _legend(canvas, axes[0])
        return to_svg(canvas)


def _draw_shares(axis: Axes, labels: Sequence[str], by_arm: dict[str, dict[str, int]]) -> None:
    rows = [row for row, label in enumerate(labels) if label in by_arm]
    left = [0.0] * len(rows)
    for verdict in VERDICTS:
        found = [by_arm[labels[row]] for row in rows]
        shares = [100 * counts[verdict] / sum(counts.values()) for counts in found]
        axis.barh(rows, shares, 0.7, left, color=VERDICT_COLOURS[verdict], label=verdict)
        left = [start + share for start, share in zip(left, shares, strict=True)]
    axis.set_xlim(0, 100)


def _panels(
    num_rows: int, titles: Sequence[str], inches: float = PANEL_INCHES
) -> tuple[Canvas, list[Axes]]:
    size = (1.8 + inches * len(titles), 0.9 + ROW_INCHES * num_rows)
    canvas = Canvas(figsize=size, layout="constrained")
    axes: list[Axes] = list(canvas.subplots(1, len(titles), sharey=True, squeeze=False)[0])
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=9)
        axis.set_facecolor("none")
        axis.spines[["top", "right"]].set_visible(False)
    return canvas, axes


def _label_arms(axes: Sequence[Axes], labels: Sequence[str]) -> None:
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].set_ylim(len(labels) - 0.5, -0.5)


def _legend(canvas: Canvas, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)


def to_svg(canvas: Canvas) -> str:
    """Returns an inline SVG element whose `INK` is the colour of the text around it."""
    buffer = io.StringIO()
    canvas.patch.set_alpha(0)
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    FigureCanvasSVG(canvas).print_svg(buffer, metadata=nothing)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")
