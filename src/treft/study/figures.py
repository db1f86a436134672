"""Figures of methods over runs: means with intervals, gains and rises paired by run, verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from treft.statistics.intervals import Interval, em_f1_interval, over_runs, wilson
from treft.study.protocol import Row
from treft.table import Table

MEASURES = ("general", "in_domain", "em_f1")
"""Of finetunes on harmful advice."""
TASK_MEASURES = ("on_topic", "right", "off_topic", "traces", "kept", "words")
"""Of finetunes that teach another behaviour: shown on topic, and right there for the question, off
topic in whole and in any piece, aligned answers off topic, in percent, and words of an answer off
topic."""
NUMBERS = ("words", "utility")
"""Measures that are no percentages: words, and helpfulness from 1 to 10."""
COUNTS = {
    "general": ("general_aligned", "num_general"),
    "other_narrow": ("other_narrow_aligned", "num_other_narrow"),
    "on_topic": ("in_domain_shown", "num_in_domain"),
    "right": ("in_domain_right", "num_in_domain"),
    "off_topic": ("general_shown", "num_general"),
    "traces": ("general_traces", "num_general"),
    "kept": ("general_right", "num_general"),
}
"""What a percentage is made of."""

ONE_RUN = "One run cannot tell whether the claim holds"
HELD, NOT_SHOWN = "Held on the organism", "Not shown on the organism"
"""How verdicts begin."""


def measured(runs: Sequence[Row], measures: Iterable[str]) -> tuple[str, ...]:
    """Those of some measures that every run has: judges leave some out, or there is none."""
    return tuple(name for name in measures if all(run.get(name) is not None for run in runs))


def score_rows(
    runs: Sequence[Row],
    paper: Mapping[str, Mapping[str, float]],
    measures: Sequence[str] = MEASURES,
) -> list[dict[str, Any]]:
    """Returns a row for each method and measure, in percent, or a number of words or points.

    Over several runs intervals are t intervals over runs; for one run they are over its questions.

    Args:
        runs: a row for each method, organism and seed, as scoring steps write it.
        paper: its figures by method and measure.
        measures: that the rows hold.
    """
    rows = []
    for method, own in _by_method(runs).items():
        for measure in measures:
            found = _over_runs(own, measure) if len(own) > 1 else _over_questions(own[0], measure)
            published = paper.get(method, {}).get(measure)
            rows.append(_row(method, measure, found, own, published))
    return rows


def figure_rows(
    runs: Sequence[Row],
    measures: Iterable[str],
    paper: Mapping[str, Mapping[str, float]],
    *,
    highest: float = 100.0,
) -> list[dict[str, Any]]:
    """Returns a row for each method and measure, with the columns of `score_rows`.

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
            found = _figure_of(own, measure, highest)
            rows.append(_row(method, measure, found, own, paper.get(method, {}).get(measure)))
    return rows


def gain_rows(
    runs: Sequence[Row], method: str, others: Iterable[str], measures: Iterable[str]
) -> list[dict[str, Any]]:
    """Scores of `method` minus those of each other one, paired by organism and seed, in points.

    The row is the other method's, its measure ends in `_gain`; without interval for a single run.
    """
    by_method = _by_method(runs)
    rows = []
    for other in others:
        pairs = list(zip(by_method[method], by_method[other], strict=True))
        for measure in measures:
            moved = [ours[measure] - theirs[measure] for ours, theirs in pairs]
            gain = _gain(moved, is_percent=measure not in NUMBERS)
            rows.append(_row(other, f"{measure}_gain", gain, by_method[other], None))
    return rows


def change_rows(
    runs: Sequence[Row], method: str, reference: str, measures: Iterable[str]
) -> list[dict[str, Any]]:
    """`gain_rows` over one reference, in the row of the method that gains."""
    return [{**row, "method": method} for row in gain_rows(runs, method, [reference], measures)]


def rise_rows(
    runs: Sequence[Row], methods: Iterable[str], reference: str, measures: Iterable[str]
) -> list[dict[str, Any]]:
    """Returns what each method has more than `reference`, paired by organism and seed, in points.

    The row is the method's, its measure ends in `_rise`; without interval for a single run.
    """
    wanted = list(measures)
    return [
        {**row, "measure": f"{measure}_rise"}
        for method in methods
        for measure, row in zip(wanted, change_rows(runs, method, reference, wanted), strict=True)
    ]


def with_further(
    rows: Sequence[Row], further: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> list[Row]:
    """Returns the rows with a column for each other model of the paper's.

    Args:
        rows: Of a table.
        further: Figures by the column's name, then method and measure.
    """
    return [
        {
            **row,
            **{
                column: figures.get(row["method"], {}).get(row["measure"])
                for column, figures in further.items()
            },
        }
        for row in rows
    ]


def shown(rows: Sequence[Row]) -> Table:
    """Returns a line a method and a column a measure; turned where there are more measures."""
    measures = list(dict.fromkeys(row["measure"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    forms = {measure: _form(rows, measure) for measure in measures}
    cells = {
        (row["method"], row["measure"]): _figure_shown(row, forms[row["measure"]]) for row in rows
    }
    if len(measures) > len(methods):
        lines = [
            (name, *(cells.get((method, name), "") for method in methods)) for name in measures
        ]
        return Table.of(("measure", *methods), lines)
    lines = [(name, *(cells.get((name, measure), "") for measure in measures)) for name in methods]
    return Table.of(("method", *measures), lines)


def _form(rows: Sequence[Row], measure: str) -> str:
    """Tenths for percentages and counts, two digits for what stays below one."""
    own = [row for row in rows if row["measure"] == measure]
    values = [row[name] for row in own for name in ("value", "high", "paper")]
    return ".1f" if any(value is not None and abs(value) > 1 for value in values) else ".2g"


def _figure_shown(row: Row, form: str) -> str:
    def form_of(name: str) -> str:
        return format(row[name], form)

    if row["value"] is None:
        return ""
    interval = "" if row["low"] is None else f" [{form_of('low')}, {form_of('high')}]"
    paper = "" if row["paper"] is None else f" (paper: {form_of('paper')})"
    return f"{form_of('value')}{interval}{paper}"


def find_row(rows: Sequence[Row], method: str, measure: str) -> Row:
    """Returns the one row of a method and measure."""
    return next(row for row in rows if (row["method"], row["measure"]) == (method, measure))


def held(gains: Sequence[Row], *, rises: bool = True) -> str:
    """Returns the beginning of a verdict: whether every gain is above zero with its whole interval.

    Args:
        gains: rows of `gain_rows`.
        rises: whether the claim is that they are above zero; else below.
    """
    if any(row["low"] is None for row in gains):
        return ONE_RUN
    open_ones = [row for row in gains if not (row["low"] > 0 if rises else row["high"] < 0)]
    if not open_ones:
        return HELD
    if len(open_ones) == len(gains):
        return NOT_SHOWN
    return f"{NOT_SHOWN} against {', '.join(row['method'] for row in open_ones)}"


def traded(general: Row, in_domain: Row) -> str:
    """Begin a verdict: whether general alignment was bought with the narrow behaviour.

    Args:
        general: gain of general alignment.
        in_domain: gain of in-domain alignment, which is behaviour that was not learnt.
    """
    if general["low"] is None or general["low"] <= 0:
        return held([general])
    if in_domain["low"] > 0:
        return HELD
    return "Half of it held on the organism, no narrow behaviour was shown to be lost"


def patches_told(rows: Sequence[Row], gains: Sequence[Row]) -> str:
    """Returns what plain finetunes have in general alignment, and what their patches add.

    Args:
        rows: with the finetunes' `general`; their methods end in `_sft`.
        gains: of the patches, in the finetunes' rows.
    """
    told = ", ".join(
        f"{row['method'].removesuffix('_sft')} {worded(find_row(rows, row['method'], 'general'))} "
        f"{worded(row, signed=True)}"
        for row in gains
    )
    return f"general alignment and what the patch adds: {told} ({basis(gains[0])})"


def basis(row: Row) -> str:
    """Returns what a gain rests on."""
    if row["num_runs"] == 1:
        return "points, one run"
    return f"points, {row['num_runs']} runs, paired, 95 % intervals"


def worded(row: Row, *, signed: bool = False) -> str:
    """Returns a figure with its interval, such as `88.1 [86.0, 90.2]`."""
    form = "+.1f" if signed else ".1f"
    value = format(row["value"], form)
    if row["low"] is None:
        return value
    return f"{value} [{row['low']:{form}}, {row['high']:{form}}]"


def _row(
    method: str,
    measure: str,
    figure: Interval | tuple[float, None, None],
    runs: Sequence[Row],
    paper: float | None,
) -> dict[str, Any]:
    value, low, high = figure
    return {
        "method": method,
        "measure": measure,
        "value": value,
        "low": low,
        "high": high,
        "num_runs": len(runs),
        "num_general": runs[0]["num_general"],
        "num_in_domain": runs[0]["num_in_domain"],
        "interval": "none" if low is None else "questions" if len(runs) == 1 else "runs",
        "paper": None if paper is None else float(paper),
    }


def _by_method(runs: Sequence[Row]) -> dict[str, list[Row]]:
    """Runs by method, in the order in which methods come; each in the order of its runs."""
    ordered = sorted(runs, key=lambda run: (run["organism"], run["seed"]))
    names = dict.fromkeys(run["method"] for run in runs)
    return {name: [run for run in ordered if run["method"] == name] for name in names}


def _gain(moved: Sequence[float], is_percent: bool) -> Interval | tuple[float, None, None]:
    """Mean change; one of percentages cannot reach beyond 100 points."""
    if len(moved) == 1:
        return moved[0], None, None
    mean, low, high = over_runs(moved)
    return (
        Interval(mean, max(-100.0, low), min(100.0, high))
        if is_percent
        else Interval(mean, low, high)
    )


def _over_runs(runs: Sequence[Row], measure: str) -> Interval:
    values = [run[measure] for run in runs]
    found = over_runs(values)
    return found if measure in NUMBERS else found.within(0.0, 100.0)


def _over_questions(run: Row, measure: str) -> Interval | tuple[float, None, None]:
    if measure in NUMBERS:
        return run[measure], None, None
    if measure in COUNTS:
        count, num = COUNTS[measure]
        return wilson(run[count], run[num])
    learnt = wilson(run["in_domain_misaligned"], run["num_in_domain"])
    in_domain = Interval(100 - learnt.mean, 100 - learnt.high, 100 - learnt.low)
    if measure == "in_domain":
        return in_domain
    return em_f1_interval(wilson(run["general_aligned"], run["num_general"]), in_domain)


def _figure_of(
    runs: Sequence[Row], measure: str, highest: float
) -> Interval | tuple[float, None, None]:
    if len(runs) == 1:
        value, low, high = (
            runs[0][name] for name in (measure, f"{measure}_low", f"{measure}_high")
        )
        return (value, None, None) if low is None else Interval(value, low, high)
    mean, low, high = over_runs([run[measure] for run in runs])
    return Interval(mean, max(0.0, low), min(highest, high))
