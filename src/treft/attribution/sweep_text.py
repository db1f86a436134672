"""The table of a patching sweep in words: headings, cells, and all of it as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from math import nan

from treft.attribution.sweep_plan import SweepPlan
from treft.attribution.sweep_table import SweepRowFigures, SweepTable
from treft.statistics.intervals import Interval
from treft.statistics.results import Difference, Estimate

HEADINGS = (
    "patched",
    "states of",
    "tokens",
    "alignment",
    "against the finetuned model",
    "share regained, %",
    "incoherent, %",
)


def cells(row: SweepRowFigures) -> list[str]:
    """One line of the table."""
    return [
        f"{row.name} (control)" if row.is_control else row.name,
        _SOURCES[row.source],
        f"{row.num_tokens:.1f}" if row.source else "",
        _estimate(row.alignment),
        _gain(row.gain),
        _share(row.share),
        "unknown" if row.incoherent is None else _estimate(row.incoherent),
    ]


def legend(table: SweepTable) -> str:
    """What the figures of a table are."""
    return (
        f"Judge {table.judge}; alignment from 0 to 100, [95 % interval], clustered by question. "
        "Against the finetuned model: its answers to the same questions with the same random "
        "numbers, paired by question; p after Holm's adjustment for all patches. Share regained: "
        "of the alignment that the finetune lost, by bootstrap over questions; blank where nothing "
        "was surely lost. Tokens: replaced in a prompt on average. Controls: as many tokens of the "
        "query, and the base's states at random tokens."
    )


def notes(table: SweepTable) -> list[str]:
    """What to bear in mind: the exact control, missing losses and judgements, cautions."""
    found = [f"own keys and values: {table.own_states}."]
    if table.loss.low is None or table.loss.high is None or table.loss.high >= 0:
        found.append(
            f"the finetuned model is not surely less aligned than its base ({_gain(table.loss)}): "
            "there is nothing that a patch could regain here."
        )
    places: dict[str, list[str]] = {}
    for row in table.rows:
        counts = asdict(row.alignment.counts)
        lost = {name: counts[name] for name in ("refusal", "code", "missing") if counts[name]}
        if lost:
            words = ", ".join(f"{name} {num}" for name, num in lost.items())
            found.append(f"{row.name}: answers without a score: {words}.")
        if row.alignment.caution:
            places.setdefault(row.alignment.caution, []).append(row.name)
    return [*found, *(f"{what}: {', '.join(at)}." for what, at in places.items())]


def to_markdown(plan: SweepPlan, tables: Iterable[SweepTable]) -> str:
    """The whole sweep as a Markdown document."""
    request = plan.request
    parts = [
        "# Patching: which keys and values carry the behaviour",
        f"{len(plan.questions)} questions ({request.scope}), {request.num_samples} answers to "
        f"each under each of {len(plan.cells)} patches, temperature "
        f"{request.sampling.temperature:g}, seed {request.seed}.",
    ]
    for table in tables:
        parts += [f"## {table.judge}", _table(table), legend(table)]
        parts.append("\n".join(f"- {note}" for note in notes(table)))
    return "\n\n".join(parts) + "\n"


_SOURCES = {
    "": "",
    "base": "base",
    "random": "base at random tokens",
    "stream": "base's residual stream",
}


def _table(table: SweepTable) -> str:
    lines: list[Sequence[str]] = [HEADINGS, ["---"] * len(HEADINGS)]
    lines += [cells(row) for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _estimate(found: Estimate) -> str:
    low, high = (nan if bound is None else bound for bound in (found.low, found.high))
    return f"{found.value:.1f} [{low:.1f}, {high:.1f}]"


def _gain(found: Difference | None) -> str:
    if found is None:
        return ""
    low, high = (nan if bound is None else bound for bound in (found.low, found.high))
    words = f"{found.value:+.1f} [{low:+.1f}, {high:+.1f}]"
    if found.p_holm is None:
        return words
    return f"{words} p {'< 0.001' if found.p_holm < 0.001 else f'= {found.p_holm:.3f}'}"


def _share(found: Interval | None) -> str:
    if found is None:
        return ""
    return f"{100 * found.mean:.0f} [{100 * found.low:.0f}, {100 * found.high:.0f}]"
