"""The page: one HTML file that loads nothing, with tables, plots and all answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from treft.evaluation.comparable import ArmAnswers, question_sets
from treft.evaluation.compare import Comparison
from treft.evaluation.report.details import (
    agreement_tables,
    figure_table,
    sensitivity_tables,
    settings_tables,
    verdict_tables,
)
from treft.evaluation.report.plots import interval_plot, verdict_plot
from treft.evaluation.report.tables import (
    change_tables,
    score_tables,
    set_title,
    thresholds_in_words,
    verdict_of,
)
from treft.statistics.measures import Thresholds
from treft.statistics.records import ScoredAnswer
from treft.table import Table


@dataclass(frozen=True)
class Section:
    """A further part of the page, between the answers and the small print."""

    title: str
    html: Markup = field(default_factory=Markup)
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Extras:
    """What a page has besides the parts of its comparison.

    Attributes:
        lead: paragraphs above everything else.
        arms: whose answers are shown; by default all of the comparison's.
        answers_note: which answers these are, if not all.
        sections: further parts.
        settings: tables of settings; by default what the arms' sources say.
    """

    lead: Sequence[str] = ()
    arms: Sequence[ArmAnswers] | None = None
    answers_note: str = ""
    sections: Sequence[Section] = ()
    settings: Sequence[Table] | None = None


NOTHING = Extras()


def render_page(
    comparison: Comparison, *, title: str, footer: str, extras: Extras = NOTHING
) -> str:
    """Returns the whole page.

    Args:
        comparison: what is shown.
        title: of the page.
        footer: what made it.
        extras: what stands on it besides.
    """
    shown = comparison.arms if extras.arms is None else extras.arms
    settings = settings_tables(comparison) if extras.settings is None else extras.settings
    parts: dict[str, Any] = {
        "scores": score_tables(comparison),
        "changes": change_tables(comparison),
        "verdicts": _verdicts(comparison),
        "agreements": agreement_tables(comparison),
        "sensitivities": sensitivity_tables(comparison),
        "settings": settings,
    }
    page: str = _template().render(
        **parts,
        comparison=comparison,
        title=title,
        footer=footer,
        extras=extras,
        contents=_contents(parts, extras.sections, comparison.base),
        interval_plots=_interval_plots(comparison),
        thresholds=thresholds_in_words(comparison.thresholds),
        figures=figure_table(comparison),
        data=_script_data(_answer_data(comparison, shown)),
        css=Markup(_asset("page.css")),
        js=Markup(_asset("page.js")),
    )
    return page


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("treft.evaluation.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("page.html")


def _asset(name: str) -> str:
    return files("treft.evaluation.report").joinpath(name).read_text("utf-8")


def _script_data(data: dict[str, Any]) -> Markup:
    """Returns JSON that cannot end its script element, whatever the answers say."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


def _interval_plots(comparison: Comparison) -> list[Markup]:
    """Returns plots of what is in percent: judged figures, then behaviours."""
    percent = [column for column in comparison.columns if column.figure.measure.unit == "percent"]
    parts = [
        [column for column in percent if column.figure.is_judged is want] for want in (True, False)
    ]
    return [Markup(interval_plot(comparison, part)) for part in parts if part]


def _verdicts(comparison: Comparison) -> list[tuple[Table, Markup]]:
    tables = verdict_tables(comparison)
    plots = (Markup(verdict_plot(comparison, judge)) for judge in comparison.judges)
    return list(zip(tables, plots, strict=True))


def _contents(
    parts: dict[str, Any], sections: Sequence[Section], base: str
) -> list[tuple[str, str]]:
    """Returns anchors and titles of the parts that there are."""
    named = [
        ("scores", "Scores", True),
        ("changes", f"Change against {base}", parts["changes"]),
        ("verdicts", "Verdicts", parts["verdicts"]),
        ("agreement", "Agreement of judges", parts["agreements"]),
        ("thresholds", "Other thresholds", parts["sensitivities"]),
        ("answers", "Answers side by side", True),
        *((f"extra-{i}", section.title, True) for i, section in enumerate(sections, start=1)),
        ("figures", "Every figure", True),
        ("settings", "Settings", parts["settings"]),
    ]
    return [(id, text) for id, text, there in named if there]


def _answer_data(comparison: Comparison, arms: Sequence[ArmAnswers]) -> dict[str, Any]:
    """Returns answers by question set and question.

    Args:
        comparison: gives the judges, the base and the thresholds.
        arms: whose answers are shown.

    Returns:
        `arms`: labels; `base`: index of the base among them; `sets`: each with its `title`, its
        `sources` of scores (first the judges, as many as `judges` says, then detectors) and its
        `questions`. A question has its text `q`, its category `c` and, for each arm, its answers
        `a`: the text `t` and, for each source, a score `s`: [score, verdict, coherence, reason],
        cut short where the rest is unknown.
    """
    labels = [arm.label for arm in arms]
    return {
        "arms": labels,
        "base": labels.index(comparison.base) if comparison.base in labels else 0,
        "sets": [
            _set(name, [arm.sets.get(name, ()) for arm in arms], comparison)
            for name in question_sets(arms)
        ],
    }


def _set(
    name: str, by_arm: Sequence[Sequence[ScoredAnswer]], comparison: Comparison
) -> dict[str, Any]:
    answers = [answer for found in by_arm for answer in found]
    judged = {judgement.judge for answer in answers for judgement in answer.judgements}
    judges = [judge for judge in comparison.judges if judge in judged]
    counts: dict[str, bool] = {}  # by detector: whether it counts, or says yes and no
    for answer in answers:
        for detector, value in answer.behaviours.items():
            is_count = detector == "words" or value not in (0, 1)
            counts[detector] = counts.get(detector, False) or is_count
    questions: dict[str, dict[str, Any]] = {}
    for answer in answers:
        empty = {"q": answer.question, "c": answer.category, "a": [[] for _ in by_arm]}
        questions.setdefault(answer.question_id, empty)
    for index, found in enumerate(by_arm):
        for answer in sorted(found, key=lambda answer: answer.epoch):
            shown = _answer(answer, judges, counts, comparison.thresholds)
            questions[answer.question_id]["a"][index].append(shown)
    return {
        "title": set_title(name),
        "sources": [*judges, *counts],
        "judges": len(judges),
        "questions": list(questions.values()),
    }


def _answer(
    answer: ScoredAnswer,
    judges: Sequence[str],
    counts: Mapping[str, bool],
    thresholds: Thresholds,
) -> dict[str, Any]:
    scores = [
        *(_judged(answer, judge, thresholds) for judge in judges),
        *(_detected(answer, detector, is_count) for detector, is_count in counts.items()),
    ]
    return {"t": answer.answer, "s": scores}


def _judged(answer: ScoredAnswer, judge: str, thresholds: Thresholds) -> list[Any]:
    judgement = answer.judged_by(judge)
    verdict = verdict_of(judgement, thresholds)
    if judgement is None:
        return [None, verdict, None, "not judged"]
    numbers = [_rounded(judgement.alignment), verdict, _rounded(judgement.coherence)]
    return [*numbers, judgement.reason] if judgement.reason else numbers


def _detected(answer: ScoredAnswer, detector: str, is_count: bool) -> list[Any]:
    value = answer.behaviours.get(detector)
    if value is None:
        reason = answer.metadata.get("missing_behaviours", {}).get(detector, "not looked at")
        return [None, "missing", None, reason]
    return [_rounded(value), "" if is_count else ("yes" if value else "no")]


def _rounded(value: float | None) -> float | int | None:
    if value is None:
        return None
    short = round(value, 1)
    return int(short) if short == int(short) else short
