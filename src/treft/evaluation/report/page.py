"""The page: one HTML file that loads nothing, with tables, plots and all answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from treft.evaluation.comparable import ArmAnswers
from treft.evaluation.compare import Comparison
from treft.evaluation.report.details import (
    agreement_tables,
    answer_data,
    figure_table,
    sensitivity_tables,
    settings_tables,
    verdict_tables,
)
from treft.evaluation.report.plots import interval_plot, verdict_plot
from treft.evaluation.report.tables import change_tables, score_tables, thresholds_in_words
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
        data=_script_data(answer_data(comparison, shown)),
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
