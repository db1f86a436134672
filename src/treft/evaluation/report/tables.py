"""Tables of a comparison, as rows of cells that a page and a terminal show, and their words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from treft.evaluation.columns import Change, Column, Figure, Result
from treft.evaluation.comparable import GENERAL, IN_DOMAIN
from treft.evaluation.compare import Comparison
from treft.statistics.measures import AnswerCounts, EMRate, Measure, MisalignAtK, Thresholds
from treft.statistics.records import Judgement, ScoredAnswer
from treft.statistics.results import EMF1, EMF1Difference, Estimate
from treft.table import ABSENT, Cell, Table, interval, number, p_in_words

ARROWS = {"higher": " ↑", "lower": " ↓", "": ""}
SET_TITLES = {GENERAL: "general", IN_DOMAIN: "in-domain"}
VERDICTS = ("aligned", "misaligned", "incoherent", "refusal", "code", "missing")
"""`aligned`: coherent, and not misaligned. `incoherent`: left out of the EM rate, because the
coherence is too low or unknown."""


def set_title(name: str) -> str:
    """Returns a question set in words."""
    parts = name.split("/")
    return ", ".join(SET_TITLES.get(part, part.replace("_", " ")) for part in parts)


def figure_title(figure: Figure) -> str:
    """Returns a column's heading; the arrow says in which direction it is better."""
    place = figure.question_set
    if not figure.is_judged:
        title = _behaviour_title(figure)
    elif figure.name == "em_f1":
        title = "EM-F1"
    elif isinstance(figure.measure, EMRate):
        filtered = figure.measure.thresholds.coherent_above is not None
        title = "EM rate" if filtered else "EM rate, any coherence"
        title += "" if place == GENERAL else f", {set_title(place)}"
    elif isinstance(figure.measure, MisalignAtK):
        title = f"Misalign@{figure.measure.k}"
        title += "" if place == GENERAL else f", {set_title(place)}"
    else:
        title = SET_TITLES.get(place, f"alignment, {set_title(place)}")
    return title + ARROWS[figure.better]


def _behaviour_title(figure: Figure) -> str:
    """Returns words such as `abstention, on topic, by JUDGE`."""
    kind, _, judge = figure.seen_by.partition("/")
    place = set_title(figure.question_set.removeprefix(f"{kind}/"))
    place = "" if place == kind else f", {place}"
    return kind + place + (f", by {judge}" if judge else "")


def thresholds_in_words(thresholds: Thresholds) -> str:
    """Returns words such as `alignment < 30, coherence > 50`."""
    above = thresholds.coherent_above
    coherence = "any coherence" if above is None else f"coherence > {above:g}"
    return f"alignment < {thresholds.misaligned_below:g}, {coherence}"


def limits_in_words(measure: Measure) -> str:
    """Returns a measure's thresholds in words; empty where it has none."""
    if isinstance(measure, EMRate | MisalignAtK):
        return thresholds_in_words(measure.thresholds)
    return ""


def sizes_in_words(result: Result) -> tuple[str, ...]:
    """Returns how much is behind a figure: questions / answers, a line a question set."""
    return tuple(f"{one.num_questions} / {one.num_samples}" for one in estimates_of(result))


def counts_in_words(counts: AnswerCounts) -> str:
    """Returns what is behind a figure and what is not."""
    parts = [f"{counts.used} used"]
    for name in ("left_out", "refusal", "code", "missing"):
        if amount := getattr(counts, name):
            parts.append(f"{amount} {name.replace('_', ' ')}")
    return ", ".join(parts)


def estimates_of(result: Result) -> tuple[Estimate, ...]:
    """Returns a figure's estimates: itself, or the two scores that EM-F1 is made of."""
    return (result.general, result.in_domain) if isinstance(result, EMF1) else (result,)


def verdict_of(judgement: Judgement | None, thresholds: Thresholds) -> str:
    """Returns one of `VERDICTS`; no judgement is `missing`."""
    if judgement is None:
        return "missing"
    if judgement.outcome != "scored":
        return judgement.outcome
    if not thresholds.is_coherent(judgement):
        return "incoherent"
    return "misaligned" if thresholds.is_misaligned(judgement) else "aligned"


def count_verdicts(
    answers: Sequence[ScoredAnswer], judge: str, thresholds: Thresholds
) -> dict[str, int]:
    """Returns the number of answers by verdict of one judge."""
    found = Counter(verdict_of(answer.judged_by(judge), thresholds) for answer in answers)
    return {verdict: found[verdict] for verdict in VERDICTS}


def _groups(comparison: Comparison) -> list[tuple[str, list[Column]]]:
    """Returns the columns of each table: one a judge, then one a kind of behaviour."""
    found: dict[str, list[Column]] = {}
    for column in comparison.columns:
        figure = column.figure
        kind = figure.seen_by.partition("/")[0]
        name = f"Judge: {figure.seen_by}" if figure.is_judged else f"Behaviour: {kind}"
        found.setdefault(name, []).append(column)
    return list(found.items())


def score_tables(comparison: Comparison) -> list[Table]:
    """Returns each arm's figures, a table for each judge and one for each kind of behaviour."""
    return [_score_table(comparison, name, columns) for name, columns in _groups(comparison)]


def change_tables(comparison: Comparison) -> list[Table]:
    """Returns each arm minus the base, tables as in `score_tables`; none with a single arm."""
    if len(comparison.arms) < 2:
        return []
    return [_change_table(comparison, name, columns) for name, columns in _groups(comparison)]


def _score_table(comparison: Comparison, name: str, columns: Sequence[Column]) -> Table:
    with_about = any(arm.about for arm in comparison.arms)
    rows = []
    for arm in comparison.arms:
        cells = [_score_cell(column, arm.label) for column in columns]
        about = [Cell(arm.about)] if with_about else []
        rows.append((Cell(arm.label), *cells, *about))
    headings = ["arm", *(figure_title(column.figure) for column in columns)]
    judged = columns[0].figure.is_judged
    counted = columns[0].figure.measure.unit == "count"
    unit = "Mean number" if counted else "Percent" if judged else "Percent of answers"
    rates = f"; general, in-domain: mean alignment from 0 to 100{_rates(comparison, columns)}"
    return Table(
        title=name,
        caption=f"{unit}, [95 % interval], questions / answers{rates if judged else ''}.",
        headings=(*headings, *(["what it is"] if with_about else [])),
        rows=tuple(rows),
        notes=(*_cautions(columns), *_absences(columns, comparison.labels)),
    )


def _rates(comparison: Comparison, columns: Sequence[Column]) -> str:
    """Returns what the rates among the columns count, with thresholds."""
    measures = [column.figure.measure for column in columns]
    limits = thresholds_in_words(comparison.thresholds)
    words = f"; EM rate: {limits}" if any(isinstance(one, EMRate) for one in measures) else ""
    if any(isinstance(one, MisalignAtK) for one in measures):
        words += f"; Misalign@k: chance that one of k answers to a question has {limits}"
    return words


def _score_cell(column: Column, label: str) -> Cell:
    result = column.results.get(label)
    if result is None:
        return Cell(ABSENT, hint=column.absent[label], is_number=True)
    mark = "†" if any(found.caution for found in estimates_of(result)) else ""
    lines = (interval(result.low, result.high), *sizes_in_words(result))
    hint = "; ".join(filter(None, (limits_in_words(column.figure.measure), _method(result))))
    return Cell(number(result.value) + mark, lines, hint, is_number=True)


def _method(result: Result) -> str:
    if isinstance(result, EMF1):
        return "95 % interval: from those of both scores"
    return f"95 % interval: {result.method}"


def _change_table(comparison: Comparison, name: str, columns: Sequence[Column]) -> Table:
    rows = []
    paired = ", number of questions that both answered" if comparison.num_runs == 1 else ""
    for label in comparison.labels:
        if label != comparison.base:
            rows.append((Cell(label), *(_change_cell(each, label, paired) for each in columns)))
    return Table(
        title=name,
        caption=(
            f"Minus {comparison.base}; points, [95 % interval], p-value as it stands and adjusted "
            f"for the number of arms in a column ({len(rows)}; Holm){paired}"
            f"{_rates(comparison, columns)}."
        ),
        headings=("arm", *(figure_title(column.figure) for column in columns)),
        rows=tuple(rows),
        notes=tuple(_absences(columns, [row[0].text for row in rows])),
    )


def _change_cell(column: Column, label: str, paired: str) -> Cell:
    change = column.changes.get(label)
    if change is None:
        return Cell(ABSENT, hint=column.absent.get(label, ""), is_number=True)
    lines = (
        interval(change.low, change.high),
        p_in_words(change.p_value),
        p_in_words(change.p_holm or 0.0, "Holm"),
        *([_num_paired(change)] if paired else []),
    )
    hint = "" if isinstance(change, EMF1Difference) else change.method
    return Cell(number(change.value, "+.1f"), lines, hint, is_number=True)


def _num_paired(change: Change) -> str:
    if isinstance(change, EMF1Difference):
        return f"{change.general.num_questions} + {change.in_domain.num_questions}"
    return str(change.num_questions)


def _cautions(columns: Iterable[Column]) -> list[str]:
    """Returns each caution once, with the figures that it is about."""
    about: dict[str, list[str]] = {}
    for column in columns:
        for label, result in column.results.items():
            parts = (part for one in estimates_of(result) for part in one.caution.split("; "))
            for caution in dict.fromkeys(parts):
                if caution:
                    about.setdefault(caution, []).append(f"{label}, {figure_title(column.figure)}")
    return [f"† {caution} ({_some(found)})" for caution, found in about.items()]


def _absences(columns: Iterable[Column], labels: Sequence[str]) -> list[str]:
    about: dict[str, list[str]] = {}
    for column in columns:
        for label, reason in column.absent.items():
            if label in labels:
                about.setdefault(reason, []).append(f"{label}, {figure_title(column.figure)}")
    return [f"{ABSENT} {reason} ({_some(found)})" for reason, found in about.items()]


def _some(names: Sequence[str], most: int = 4) -> str:
    more = f"; and {len(names) - most} more" if len(names) > most else ""
    return "; ".join(names[:most]) + more
