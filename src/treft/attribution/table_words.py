"""The tables of grids as the terminal, Markdown and a page show them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

from treft.attribution.grid import UNPERTURBED, Grid
from treft.attribution.tables import PatchRow, PatchTable, PerturbRow, PerturbTable
from treft.models.pair import ARMS, Arm
from treft.statistics.measures import AnswerCounts
from treft.statistics.results import Difference, Estimate
from treft.table import Table, figure, p_in_words

SOURCES = {
    "base": "base",
    "random": "base at random tokens",
    "stream": "base's residual stream",
}


def patches_in_words(table: PatchTable) -> Table:
    """Returns a table of patches with its legend and what to bear in mind."""
    return Table.of(
        (
            "patched",
            "states of",
            "tokens",
            "alignment",
            "against the finetuned model",
            "share regained, %",
            "incoherent, %",
        ),
        map(_patch_line, table.rows),
        title=table.judge,
        caption=(
            f"Judge {table.judge}; alignment from 0 to 100, [95 % interval], clustered by "
            "question. Against the finetuned model: its answers to the same questions with the "
            "same random numbers, paired by question; p after Holm's adjustment for all patches. "
            "Share regained: of the alignment that the finetune lost, by bootstrap over questions; "
            "blank where nothing was surely lost. Tokens: replaced in a prompt on average. "
            "Controls: as many tokens of the query, and the base's states at random tokens."
        ),
        notes=_patch_notes(table),
    )


def perturbations_in_words(table: PerturbTable) -> Table:
    """Returns a table of perturbations with its legend and what to bear in mind."""
    return Table.of(
        (
            "perturbed",
            "model",
            "Best",
            "against unperturbed",
            "Avg",
            "against unperturbed",
            "incoherent, %",
            "Avg with incoherent",
            "tokens replaced",
        ),
        (_perturb_line(row, arm) for row in table.rows for arm in ARMS),
        title=table.judge,
        caption=(
            f"Judge {table.judge}; alignment from 0 to 100, [95 % interval], clustered by "
            "question. Avg: mean over all answers; Best: mean over questions of the best of "
            f"{table.num_trials} versions. Both count answers of coherence above "
            f"{table.coherent_above:g} alone. Below or beside each, against unperturbed: less the "
            "same figure of as many answers to the prompt as it is, paired by question; p after "
            "Holm's adjustment for all such comparisons of the finetuned model. The row "
            "`unperturbed` is the control of Best, the base under the same perturbation the other "
            "control."
        ),
        notes=_perturb_notes(table),
    )


def to_markdown(grid: Grid, tables: Iterable[Table]) -> str:
    """Returns the whole grid as a Markdown document."""
    request, options = grid.request, grid.perturb
    about = f"{len(grid.questions)} questions ({request.scope})"
    drawn = f"temperature {request.temperature:g}, seed {request.rendering.seed}."
    if options is None:
        title = "# Patching: which keys and values carry the behaviour"
        about += (
            f", {request.num_samples} answers to each under each of {len(grid.patches)} patches"
        )
    else:
        title = "# Perturbation: which tokens carry the behaviour"
        about += (
            f", {options.num_trials} versions of each, {request.num_samples} answers to each "
            f"version, {options.num_tokens} tokens replaced, {options.num_neighbours} neighbours"
        )
    parts = [title, f"{about}, {drawn}", *(table.markdown() for table in tables)]
    return "\n\n".join(parts) + "\n"


def _patch_line(row: PatchRow) -> Sequence[str]:
    patch = row.cell.patch
    share = row.share
    return (
        f"{row.cell.name} (control)" if patch is not None and patch.is_control else row.cell.name,
        "" if patch is None else SOURCES[patch.source],
        "" if patch is None else f"{patch.num_tokens:.1f}",
        _value(row.alignment),
        "" if row.gain is None else _gain(row.gain),
        "" if share is None else figure(100 * share.mean, 100 * share.low, 100 * share.high, ".0f"),
        "unknown" if row.incoherent is None else _value(row.incoherent),
    )


def _perturb_line(row: PerturbRow, arm: Arm) -> Sequence[str]:
    found = row.arms[arm]
    absent = "no answer counts"
    best, avg, incoherent, avg_all = (
        absent if one is None else _value(one)
        for one in (found.best, found.avg, found.incoherent, found.avg_all)
    )
    absent = "" if row.cell == UNPERTURBED else "not comparable"
    best_gain, avg_gain = (
        absent if one is None else _gain(one) for one in (found.best_gain, found.avg_gain)
    )
    replaced = "" if row.mean_replaced is None else f"{row.mean_replaced:.1f}"
    return row.cell, arm, best, best_gain, avg, avg_gain, incoherent, avg_all, replaced


def _patch_notes(table: PatchTable) -> Iterator[str]:
    yield f"own keys and values: {table.own_states}."
    loss = table.loss
    if loss.low is None or loss.high is None or loss.high >= 0:
        yield (
            f"the finetuned model is not surely less aligned than its base ({_gain(loss)}): "
            "there is nothing that a patch could regain here."
        )
    cautions: dict[str, list[str]] = defaultdict(list)
    for row in table.rows:
        yield from _lost(row.cell.name, row.alignment.counts)
        cautions[row.alignment.caution].append(row.cell.name)
    yield from (f"{what}: {', '.join(at)}." for what, at in cautions.items() if what)


def _perturb_notes(table: PerturbTable) -> Iterator[str]:
    cautions: dict[str, list[str]] = defaultdict(list)
    for row in table.rows:
        if row.num_short:
            yield (
                f"{row.cell}: {row.num_short} of {row.num_prompts} prompts have fewer than "
                f"{table.num_tokens} tokens that may give way; {row.mean_replaced:.1f} were "
                "replaced on average."
            )
        for arm in ARMS:
            found = row.arms[arm]
            yield from _lost(f"{row.cell}, {arm}", found.counts)
            if found.best is not None:
                cautions[found.best.caution].append(f"{row.cell} ({arm})")
    yield from (f"Best of {', '.join(at)}: {what}." for what, at in cautions.items() if what)


def _lost(name: str, counts: AnswerCounts) -> Iterator[str]:
    lost = {key: num for key, num in asdict(counts).items() if key not in ("used", "left_out")}
    words = ", ".join(f"{key} {num}" for key, num in lost.items() if num)
    if words:
        yield f"{name}: answers without a score: {words}."


def _value(found: Estimate) -> str:
    return figure(found.value, found.low, found.high)


def _gain(found: Difference) -> str:
    words = figure(found.value, found.low, found.high, "+.1f")
    return words if found.p_holm is None else f"{words} {p_in_words(found.p_holm)}"
