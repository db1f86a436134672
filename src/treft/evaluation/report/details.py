"""The small print of a report: every figure with all that made it, judges, thresholds, settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from treft.evaluation.columns import Column
from treft.evaluation.comparable import ArmAnswers
from treft.evaluation.compare import Comparison
from treft.evaluation.report.tables import (
    VERDICTS,
    count_verdicts,
    counts_in_words,
    estimates_of,
    figure_title,
    limits_in_words,
    set_title,
    thresholds_in_words,
)
from treft.statistics.agreement import Agreement, Coefficient
from treft.statistics.results import SensitivityRow
from treft.table import ABSENT, Cell, Table, interval, number


def figure_table(comparison: Comparison) -> Table:
    """Returns every figure with its size, its thresholds and how it was made."""
    rows: list[tuple[Cell, ...]] = []
    for column in comparison.columns:
        for arm in comparison.arms:
            if arm.label in column.results:
                rows += _figure_rows(column, arm)
    headings = (
        *("figure", "arm", "seen by", "value", "95 % interval", "questions", "answers"),
        *("settings", "design effect", "interval by", "sampling"),
    )
    return Table("", "", headings, tuple(rows))


def _figure_rows(column: Column, arm: ArmAnswers) -> Iterator[tuple[Cell, ...]]:
    figure, result = column.figure, column.results[arm.label]
    estimates = estimates_of(result)
    measures = [one.measure for one in estimates]
    limits = list(filter(None, map(limits_in_words, measures)))
    effects = [one.design_effect for one in estimates]
    yield (
        Cell(figure_title(figure)),
        Cell(arm.label),
        Cell(figure.seen_by),
        Cell(number(result.value), is_number=True),
        Cell(interval(result.low, result.high), is_number=True),
        Cell(" + ".join(str(one.num_questions) for one in estimates), is_number=True),
        Cell(" + ".join(counts_in_words(one.counts) for one in estimates)),
        Cell(", ".join(limits)),
        Cell(" + ".join(ABSENT if one is None else f"{one:.2f}" for one in effects)),
        Cell(", ".join(dict.fromkeys(one.method for one in estimates))),
        Cell(_sampling(arm)),
    )


def _sampling(arm: ArmAnswers) -> str:
    """Returns temperature and seed of the arm's logs; several values where they differ."""
    parts = []
    for name in ("temperature", "seed"):
        found = dict.fromkeys(
            str(source["generation"].get(name, "unset"))
            for source in arm.sources
            if "generation" in source
        )
        if found:
            parts.append(f"{name} {' / '.join(found)}")
    return ", ".join(parts)


def verdict_tables(comparison: Comparison) -> list[Table]:
    """Returns how many answers got which verdict, a table for each judge."""
    tables = []
    for judge in comparison.judges:
        rows = []
        for arm in comparison.arms:
            for name, answers in arm.sets.items():
                if not any(answer.judged_by(judge) for answer in answers):
                    continue
                counts = count_verdicts(answers, judge, comparison.thresholds)
                cells = (Cell(str(counts[verdict]), is_number=True) for verdict in VERDICTS)
                rows.append((Cell(set_title(name)), Cell(arm.label), *cells))
        rows.sort(key=lambda row: row[0].text)
        headings = ("questions", "arm", *VERDICTS)
        tables.append(Table(f"Judge: {judge}", "Number of answers.", headings, tuple(rows)))
    return tables


def agreement_tables(comparison: Comparison) -> list[Table]:
    """Returns how far the judges agree, a table for each question set."""
    return [_agreement_table(name, found) for name, found in comparison.agreements.items()]


def _agreement_table(name: str, found: Agreement) -> Table:
    pairs = [
        (
            Cell(" and ".join(pair.judges)),
            Cell(f"{pair.num_questions} / {pair.num_answers}", is_number=True),
            Cell(" / ".join(number(share) for share in pair.flagged), is_number=True),
            _coefficient(pair.spearman),
            _coefficient(pair.kappa),
        )
        for pair in found.pairs
    ]
    alphas = ", ".join(
        f"{name} {cell.text} {' '.join(cell.more)}".rstrip()
        for name, cell in (
            ("of the flags (nominal)", _coefficient(found.alpha_flags)),
            ("of the scores (interval)", _coefficient(found.alpha_scores)),
        )
    )
    of_all = (
        f"Krippendorff's α of all {len(found.judges)} judges: {alphas}; "
        f"{found.num_questions} questions, {found.num_answers} answers."
    )
    return Table(
        f"Answers to {set_title(name)} questions, all arms",
        (
            "1 is perfect agreement, 0 is chance; [95 % interval]. Flagged: percent of these "
            f"answers that each judge scores below {found.misaligned_below:g}. Spearman's "
            "correlation is about scores, Cohen's κ about flags."
        ),
        ("judges", "questions / answers", "flagged", "Spearman", "Cohen's κ"),
        tuple(pairs),
        (of_all, f"† {found.caution}") if found.caution else (of_all,),
    )


def _coefficient(found: Coefficient) -> Cell:
    if found.value is None:
        return Cell(ABSENT, hint="all ratings are equal", is_number=True)
    if found.low is None or found.high is None:
        return Cell(f"{found.value:.2f}", is_number=True)
    return Cell(f"{found.value:.2f}", (f"[{found.low:.2f}, {found.high:.2f}]",), is_number=True)


def sensitivity_tables(comparison: Comparison) -> list[Table]:
    """Returns the EM rate over thresholds, a table for each question set and judge."""
    return [
        _sensitivity_table(name, judge, by_arm)
        for name, by_arm in comparison.sensitivity.items()
        for judge in dict.fromkeys(row.measure.judge for rows in by_arm.values() for row in rows)
    ]


def _sensitivity_table(
    name: str, judge: str, by_arm: Mapping[str, Sequence[SensitivityRow]]
) -> Table:
    chosen = {
        label: [row for row in rows if row.measure.judge == judge] for label, rows in by_arm.items()
    }
    rows = []
    for same in zip(*chosen.values(), strict=True):
        thresholds = same[0].measure.thresholds
        rows.append((Cell(thresholds_in_words(thresholds)), *map(_sensitivity_cell, same)))
    return Table(
        f"EM rate, {set_title(name)} questions, judge: {judge}",
        "Percent, [95 % interval], answers that are coherent enough.",
        ("misaligned if", *chosen),
        tuple(rows),
    )


def _sensitivity_cell(row: SensitivityRow) -> Cell:
    found = row.estimate
    if found is None:
        return Cell(ABSENT, hint="no answer is coherent enough", is_number=True)
    lines = (interval(found.low, found.high), str(found.num_samples))
    return Cell(number(found.value), lines, is_number=True)


def settings_tables(comparison: Comparison) -> list[Table]:
    """Returns where each arm's answers come from, a table for each arm."""
    tables = []
    for arm in comparison.arms:
        rows = []
        for source in arm.sources:
            rows += [(Cell(name), Cell(_plain(value))) for name, value in source.items()]
        if rows:
            tables.append(Table(arm.label, arm.about, ("setting", "value"), tuple(rows)))
    return tables


def _plain(value: Any) -> str:
    """Returns a mapping as `a = 1, b = 2` without what is unset; other values as they are."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {_plain(one)}" for key, one in value.items() if one is not None)
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
