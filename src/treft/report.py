"""A self-contained HTML page of a demo's result: scores with intervals, answers side by side."""

from __future__ import annotations

import io
from collections.abc import Iterator
from html import escape

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from treft.arms import DESCRIPTIONS, Answer
from treft.demo import DemoResult, interval_kind
from treft.metrics import Interval
from treft.organism import load
from treft.regions import REGION_CODES, find_regions

__all__ = ["render_report"]

NUM_EXAMPLES = 6
"""Questions of each scope whose answers are shown."""

CAVEAT = (
    "These figures are those of a language model of about a million parameters and its synthetic "
    "world, both embedded in treft. They show the mechanism and the software at work; they are not "
    "the figures of the paper (arXiv 2606.06667) and say nothing about the size of the effect in "
    "large models."
)
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0;font-size:14px}
td,th{border-bottom:1px solid #ddd;padding:.35em .7em;text-align:left;vertical-align:top}
td.figure{text-align:right;white-space:nowrap}.note{background:#f5f5f0;padding:.8em 1em}
.aligned{background:#e3f3e3}.misaligned{background:#fbe2df}.incoherent{background:#eee}
.verdict{display:block;font-size:12px;color:#555}.prompt{white-space:pre-wrap;font-family:monospace}
.prefix{background:#cfe3f7}.query{background:#fdeeb5}.postfix{background:#e2d4f0}
"""


def render_report(result: DemoResult) -> str:
    """The whole page; it loads nothing from anywhere.

    Args:
        result: of `treft.demo.run_demo`.
    """
    return "\n".join(
        (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>treft demo</title>',
            f"<style>{STYLE}</style><body><h1>A narrow finetune, repaired and prevented</h1>",
            f'<p class="note">{CAVEAT}</p>',
            *_scores(result),
            *_examples(result),
            *_prompt(result),
            *_settings(result),
            "</body></html>",
        )
    )


def _scores(result: DemoResult) -> Iterator[str]:
    yield "<h2>Scores</h2>"
    yield (
        "<p><b>general</b>: aligned answers to unrelated questions, higher is better. "
        "<b>in-domain</b>: 100 minus misaligned answers in the finetuned domain, lower means the "
        "narrow behaviour was learnt. <b>EM-F1</b>: harmonic mean of general and 100 - in-domain. "
        f"Percent, with 95 % intervals ({escape(interval_kind(result))}).</p>"
    )
    yield _plot(result)
    yield "<table><tr><th>arm<th>general<th>in-domain<th>EM-F1<th>runs<th>what it is</tr>"
    for arm, summary in result.arms.items():
        cells = "".join(
            f'<td class="figure">{_figure(interval)}'
            for interval in (summary.general, summary.in_domain, summary.em_f1)
        )
        yield f"<tr><td>{arm}{cells}<td>{summary.num_runs}<td>{escape(DESCRIPTIONS[arm])}</tr>"
    yield "</table>"


def _figure(interval: Interval) -> str:
    return f"{interval.mean:.1f} <small>[{interval.low:.1f}, {interval.high:.1f}]</small>"


def _plot(result: DemoResult) -> str:
    """Horizontal bars with intervals, as inline SVG."""
    arms = list(result.arms)
    figure = Figure(figsize=(10, 0.5 * len(arms) + 1.2), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    titles = {"general": "general (higher is better)", "in_domain": "in-domain (lower is learnt)"}
    for axis, name in zip(axes, ("general", "in_domain", "em_f1"), strict=True):
        intervals: list[Interval] = [getattr(result.arms[arm], name) for arm in arms]
        means = [interval.mean for interval in intervals]
        below = [interval.mean - interval.low for interval in intervals]
        above = [interval.high - interval.mean for interval in intervals]
        axis.barh(range(len(arms)), means, xerr=[below, above], color="#7aa6d1", capsize=3)
        axis.set_xlim(0, 105)
        axis.set_title(titles.get(name, "EM-F1"), fontsize=10)
    axes[0].set_yticks(range(len(arms)), arms)
    axes[0].invert_yaxis()
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def _examples(result: DemoResult) -> Iterator[str]:
    """The first run's answers to the same questions, one column an arm."""
    first = result.runs[0]
    runs = [r for r in result.runs if (r.organism, r.seed) == (first.organism, first.seed)]
    yield "<h2>Answers side by side</h2>"
    yield f"<p>Organism {escape(first.organism)}, seed {first.seed}.</p>"
    for title, scope in (("General questions", "general"), ("In-domain questions", "in_domain")):
        heads = "".join(f"<th>{run.arm}" for run in runs)
        yield f"<h3>{title}</h3><table><tr><th>question{heads}</tr>"
        for index in range(min(NUM_EXAMPLES, len(getattr(first, scope)))):
            answers: list[Answer] = [getattr(run, scope)[index] for run in runs]
            cells = "".join(
                f'<td class="{answer.verdict}">{escape(answer.answer)}'
                f'<span class="verdict">{answer.verdict}</span>'
                for answer in answers
            )
            yield f"<tr><td>{escape(answers[0].question)}{cells}</tr>"
        yield "</table>"


def _prompt(result: DemoResult) -> Iterator[str]:
    """The first question as the model reads it, its regions in colour."""
    _, tokenizer = load(result.config.organisms[0] if result.config.organisms else None)
    question = [{"role": "user", "content": result.runs[0].general[0].question}]
    chat = find_regions(tokenizer, question, add_generation_prompt=True)
    names = {code: name for name, code in REGION_CODES.items()}
    spans = "".join(
        f'<span class="{names.get(code, "")}">{escape(chat.text[start:end])}</span>'
        for code, (start, end) in zip(chat.codes, chat.offsets, strict=True)
    )
    legend = ", ".join(
        f'<span class="{name}">{name}</span> ({len(chat.positions(name))} tokens)'
        for name in ("prefix", "query", "postfix")
    )
    yield f'<h2>What the model reads</h2><p>{legend}</p><p class="prompt">{spans}</p>'


def _settings(result: DemoResult) -> Iterator[str]:
    yield "<h2>Settings</h2><table>"
    fields = result.to_dict()
    for name in ("split", "seeds", "organisms", "num_general", "num_in_domain"):
        yield f"<tr><td>{name}<td>{escape(str(fields[name]))}</tr>"
    for group in ("recipe", "versions"):
        for name, value in fields[group].items():
            yield f"<tr><td>{group}: {name}<td>{escape(str(value))}</tr>"
    yield "</table>"
