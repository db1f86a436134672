"""The diagnosis as one HTML file that loads nothing, with its plots as inline SVG."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from treft.attribution.findings import DiagnosisResult, PromptHeat
from treft.attribution.verdict import Diagnosis, percent
from treft.evaluation.report.plots import STYLE, to_svg
from treft.statistics.intervals import Interval
from treft.table import Cell, Table

REGAINED = "share of the loss that the patch regains, percent"
CAVEAT = (
    "Patches show what carries a behaviour in the finetuned model as it is. Training with these "
    "tokens held can find other ways: measure its result, too, under other system prompts as well."
)
COLOURS = {"prefix": "#3b7dd8", "query": "#d9a324", "postfix": "#8a5cc9"}
OTHER = "#8a8f98"
ROW_INCHES = 0.32


@dataclass(frozen=True)
class _Section:
    title: str
    lead: str = ""
    plots: tuple[Markup, ...] = ()
    html: Markup = field(default_factory=Markup)
    tables: tuple[Table, ...] = ()


def headline(diagnosis: Diagnosis) -> str:
    """Returns the verdict in a few words."""
    if diagnosis.carrier is not None:
        return f"The behaviour spreads, and the {diagnosis.carrier} carries it."
    if diagnosis.tied:
        return f"The behaviour spreads; {' and '.join(diagnosis.tied)} carry it alike."
    return {
        "narrow": "The finetune stays narrow.",
        "no_single_carrier": "The behaviour spreads, and no single region carries it.",
    }.get(diagnosis.verdict, "There is not enough evidence for a verdict.")


def render_diagnosis(result: DiagnosisResult) -> str:
    """Returns the whole page.

    Args:
        result: of `treft.attribution.diagnose`.
    """
    environment = Environment(
        loader=PackageLoader("treft.attribution", "."), autoescape=True, undefined=StrictUndefined
    )
    css = files("treft.evaluation.report").joinpath("page.css").read_text("utf-8")
    page: str = environment.get_template("page.html").render(
        title="Diagnosis of a finetune",
        headline=headline(result.diagnosis),
        result=result,
        sections=[section for section in _sections(result) if section is not None],
        footer=f"treft {result.settings.get('treft', '')}. {CAVEAT}",
        css=Markup(css),
    )
    return page


def _sections(result: DiagnosisResult) -> Iterator[_Section | None]:
    yield _regions(result)
    yield _layers(result)
    yield _heat(result)
    yield _adapter(result)
    yield _perturbation(result)
    yield _samples(result)
    yield _verdicts(result)
    yield _settings(result)


def _regions(result: DiagnosisResult) -> _Section | None:
    shares = {**result.diagnosis.shares, **result.controls}
    if not shares:
        return None
    sizes = ", ".join(f"{name} {num}" for name, num in result.num_tokens.items())
    lead = (
        f"Measured by {result.diagnosis.measure} over {result.diagnosis.num_questions} prompts; "
        f"lines are 95 % intervals over prompts. Tokens of the first prompt: {sizes}. Controls: "
        "the finetuned model's own keys and values, the base's at random tokens, and equally many "
        "tokens of each region."
    )
    return _Section("By region", lead, (Markup(bar_plot(shares, REGAINED)),))


def _layers(result: DiagnosisResult) -> _Section | None:
    curves = {}
    if result.layers:
        curves["keys and values of one layer"] = list(result.layers.items())
    if result.curve:
        curves["residual stream at one layer (prefix)"] = list(result.curve.items())
    tables = (_shares("Parts", result.parts),) if result.parts else ()
    if not curves and not tables:
        return None
    plots = (Markup(layer_plot(curves, REGAINED, scale=100.0)),) if curves else ()
    return _Section("By layer, and parts", "", plots, tables=tables)


def _shares(title: str, shares: Mapping[str, Interval]) -> Table:
    rows = tuple(
        (Cell(name), Cell(percent(share), is_number=True)) for name, share in shares.items()
    )
    return Table(title, "", ("patch", REGAINED), rows)


def _heat(result: DiagnosisResult) -> _Section | None:
    if not result.heat:
        return None
    lead = (
        "Each token of a rendered prompt, darker where more: first the share of the loss that a "
        "patch of the window around it regains, then the drift L_K + L_V of its keys and values "
        "(mean over layers). Point at a token for its figures. Drift says where the finetune "
        "moved the prompt, not what that does."
    )
    parts: list[Markup] = []
    for heat in result.heat:
        if any(share is not None for share in heat.shares):
            parts.append(_row("share regained", heat, [share or 0.0 for share in heat.shares]))
        parts.append(_row("drift", heat, heat.drift))
    return _Section("Token by token", lead, html=Markup("").join(parts))


def _row(title: str, heat: PromptHeat, values: Iterable[float]) -> Markup:
    values = list(values)
    top = max(max(values, default=0.0), 1e-12)
    spans = Markup("").join(
        Markup('<span style="background:rgba(208,84,63,{})" title="{}">{}</span>').format(
            f"{max(0.0, value) / top:.3f}", f"{region or 'no region'}: {value:.3g}", token
        )
        for token, region, value in zip(heat.tokens, heat.regions, values, strict=True)
    )
    return Markup('<h3>{} (darkest: {})</h3><p class="prompt">{}</p>').format(
        title, f"{top:.3g}", spans
    )


def _adapter(result: DiagnosisResult) -> _Section | None:
    if not result.adapter:
        return None
    names = list(result.adapter[0].delta_norms)
    regions = list(result.adapter[0].drift)
    headings = ("layer", "scale", *(f"‖ΔW‖ {name}" for name in names))
    headings += (*(f"drift {region}" for region in regions),)
    headings += (*(f"drift / scale² {region}" for region in regions),)
    rows = []
    for layer in result.adapter:
        scale = layer.scale
        cells = [str(layer.layer), "–" if scale is None else f"{scale:.3g}"]
        cells += [f"{layer.delta_norms[name]:.3g}" for name in names]
        cells += [f"{layer.drift[region]:.3g}" for region in regions]
        cells += ["–" if not scale else f"{layer.drift[name] / scale**2:.3g}" for name in regions]
        rows.append(tuple(Cell(text, is_number=True) for text in cells))
    caption = (
        "Drift is L_K + L_V of eq. (2). It grows with the adapter's scale, so raw drift cannot "
        "compare adapters; drift / scale² can, where the adapter is small."
    )
    return _Section("Drift", tables=(Table("", caption, headings, tuple(rows)),))


def _perturbation(result: DiagnosisResult) -> _Section | None:
    if not result.perturbation:
        return None
    headings, *lines = result.perturbation
    rows = tuple(tuple(map(Cell, line)) for line in lines)
    lead = "Tokens of one region replaced (section 4.1); each figure beside its control."
    return _Section("Perturbation", lead, tables=(Table("", "", headings, rows),))


def _samples(result: DiagnosisResult) -> _Section | None:
    if not result.samples:
        return None
    arms = list(result.samples[0].answers)
    rows = tuple(
        (Cell(sample.question), *(Cell(sample.answers.get(arm, "")) for arm in arms))
        for sample in result.samples
    )
    lead = f"Base and finetuned model answer differently to {percent(result.changed)} of prompts."
    return _Section("Before and after", lead, tables=(Table("", "", ("question", *arms), rows),))


def _verdicts(result: DiagnosisResult) -> _Section | None:
    if not result.others:
        return None
    rows = tuple(
        (Cell(name), Cell(each.verdict), Cell(each.carrier or "–"), Cell(each.reason))
        for name, each in result.others.items()
    )
    table = Table("", "", ("made from", "verdict", "carrier", "reason"), rows)
    return _Section("Other verdicts", tables=(table,))


def _settings(result: DiagnosisResult) -> _Section:
    seconds = {f"seconds: {name}": f"{value:.1f}" for name, value in result.seconds.items()}
    rows = tuple((Cell(str(n)), Cell(_text(v))) for n, v in {**result.settings, **seconds}.items())
    return _Section("Settings", tables=(Table("", "", ("setting", "value"), rows),))


def _text(value: Any) -> str:
    return "–" if value is None else str(value)


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
