"""The table of a perturbation study in words: headings, cells, and all of it as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from math import nan

from treft.attribution.perturb_plan import UNPERTURBED, PerturbPlan
from treft.attribution.perturb_table import PerturbRow, PerturbTable
from treft.models.pair import ARMS, Arm
from treft.statistics.results import Difference, Estimate

HEADINGS = (
    "perturbed",
    "model",
    "Best",
    "against unperturbed",
    "Avg",
    "against unperturbed",
    "incoherent, %",
    "Avg with incoherent",
    "tokens replaced",
)


def arm_lines(row: PerturbRow, arm: Arm) -> list[str]:
    """The figures of one model in one row, one a line."""
    figures = row.arms[arm]
    lines = []
    for name, found, gain in (
        ("Best", figures.best, figures.best_gain),
        ("Avg", figures.avg, figures.avg_gain),
    ):
        lines.append(f"{name} {_estimate(found)}")
        if row.cell != UNPERTURBED:
            lines.append(f"  {_gain(gain, row.cell)}")
    return [*lines, f"incoherent {_estimate(figures.incoherent)} %"]


def legend(table: PerturbTable) -> str:
    """What the figures of a table are."""
    return (
        f"Judge {table.judge}; alignment from 0 to 100, [95 % interval], clustered by question. "
        f"Avg: mean over all answers; Best: mean over questions of the best of {table.num_trials} "
        f"versions. Both count answers of coherence above {table.coherent_above:g} alone. Below "
        "or beside each, against unperturbed: less the same figure of as "
        "many answers to the prompt as it is, paired by question; p after Holm's adjustment for "
        "all such comparisons of the finetuned model. The row `unperturbed` is the control of "
        "Best, the base under the same perturbation the other control."
    )


def notes(table: PerturbTable) -> list[str]:
    """What to bear in mind: short regions, missing judgements, cautions of the figures."""
    found = []
    for row in table.rows:
        if row.num_short:
            found.append(
                f"{row.cell}: {row.num_short} of {row.num_prompts} prompts have fewer than "
                f"{table.num_tokens} tokens that may give way; {row.mean_replaced:.1f} were "
                "replaced on average."
            )
        for arm in ARMS:
            counts = asdict(row.arms[arm].counts)
            lost = {name: counts[name] for name in ("refusal", "code", "missing") if counts[name]}
            if lost:
                words = ", ".join(f"{name} {num}" for name, num in lost.items())
                found.append(f"{row.cell}, {arm}: answers without a score: {words}.")
    places: dict[str, list[str]] = {}
    for row in table.rows:
        for arm, figures in row.arms.items():
            if figures.best is not None and figures.best.caution:
                places.setdefault(figures.best.caution, []).append(f"{row.cell} ({arm})")
    return [*found, *(f"Best of {', '.join(at)}: {what}." for what, at in places.items())]


def to_markdown(plan: PerturbPlan, tables: Iterable[PerturbTable]) -> str:
    """The whole study as a Markdown document."""
    request, options = plan.request, plan.request.options
    temperature = request.sampling.temperature
    parts = [
        "# Perturbation: which tokens carry the behaviour",
        f"{len(plan.questions)} questions ({request.scope}), {options.num_trials} versions of "
        f"each, {request.num_samples} answers to each version, {options.num_tokens} tokens "
        f"replaced, {options.num_neighbours} neighbours, temperature {temperature:g}, "
        f"seed {options.seed}.",
    ]
    for table in tables:
        parts += [f"## {table.judge}", _table(table), legend(table)]
        parts += ["\n".join(f"- {note}" for note in notes(table))] if notes(table) else []
    return "\n\n".join(parts) + "\n"


def _table(table: PerturbTable) -> str:
    lines: list[Sequence[str]] = [HEADINGS, ["---"] * len(HEADINGS)]
    lines += [row_cells(row, arm) for row in table.rows for arm in ARMS]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def row_cells(row: PerturbRow, arm: Arm) -> list[str]:
    """One line of the table: a perturbation as one model answers it."""
    figures = row.arms[arm]
    replaced = "" if row.mean_replaced is None else f"{row.mean_replaced:.1f}"
    return [
        row.cell,
        arm,
        _estimate(figures.best),
        _gain(figures.best_gain, row.cell),
        _estimate(figures.avg),
        _gain(figures.avg_gain, row.cell),
        _estimate(figures.incoherent),
        _estimate(figures.avg_all),
        replaced,
    ]


def _estimate(found: Estimate | None) -> str:
    if found is None:
        return "no answer counts"
    low, high = (nan if bound is None else bound for bound in (found.low, found.high))
    return f"{found.value:.1f} [{low:.1f}, {high:.1f}]"


def _gain(found: Difference | None, cell: str) -> str:
    if found is None:
        return "" if cell == UNPERTURBED else "not comparable"
    low, high = (nan if bound is None else bound for bound in (found.low, found.high))
    words = f"{found.value:+.1f} [{low:+.1f}, {high:+.1f}]"
    if found.p_holm is None:
        return words
    return f"{words} p {'< 0.001' if found.p_holm < 0.001 else f'= {found.p_holm:.3f}'}"
