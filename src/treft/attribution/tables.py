"""The tables of grids: what each patch regains, what each perturbation does, beside the controls.

Of patches (section 4.2 of the paper): alignment, the gain over the finetuned model as it is, and
the share that it is of what the finetune lost. Of perturbations (section 4.1, Table 1): Best and
Avg. The best of ten trials is high even where nothing is perturbed, because answers are sampled, so
each figure stands beside that of as many answers to the unperturbed prompt, and beside that of the
base under the same perturbation.

A table is the object that JSON has of it (docs/attribution.md), with figures (`Estimate`) and gains
(`Difference`) in it. A figure is None where no answer counts, a gain where there is nothing to
compare with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from treft.attribution.evidence import score_evidence
from treft.attribution.grid import BASE, FINETUNED, UNPERTURBED, Cell, Grid
from treft.attribution.grid_run import Answered, Scored
from treft.attribution.options import PerturbOptions
from treft.errors import DataError
from treft.models.pair import ARMS
from treft.statistics.compare import (
    adjusted,
    difference,
    difference_if_any,
    estimate,
    estimate_if_any,
)
from treft.statistics.intervals import Interval
from treft.statistics.measures import (
    COHERENT_ABOVE,
    AlignmentScore,
    AnswerCounts,
    BestOfTrials,
    CoherentAlignment,
    IncoherentRate,
)
from treft.statistics.records import ScoredAnswer
from treft.statistics.results import Difference, Estimate
from treft.table import Table, figure, p_in_words

UNPATCHED = {
    "group": "models",
    "source": "",
    "is_control": False,
    "stream_layer": None,
    "num_tokens": 0.0,
}
"""What a row has of a patch, where there is none."""

SOURCES = {
    "": "",
    "base": "base",
    "random": "base at random tokens",
    "stream": "base's residual stream",
}

NO_ANSWER, INCOMPARABLE = "no answer counts", "not comparable"
PATCH_COLUMNS = (
    ("patched", "name", ""),
    ("states of", "source", ""),
    ("tokens", "num_tokens", ""),
    ("alignment", "alignment", ""),
    ("against the finetuned model", "gain", INCOMPARABLE),
    ("share regained, %", "share", ""),
    ("incoherent, %", "incoherent", "unknown"),
)
PERTURB_COLUMNS = (
    ("perturbed", "cell", ""),
    ("model", "arm", ""),
    ("Best", "best", NO_ANSWER),
    ("against unperturbed", "best_gain", INCOMPARABLE),
    ("Avg", "avg", NO_ANSWER),
    ("against unperturbed", "avg_gain", INCOMPARABLE),
    ("incoherent, %", "incoherent", NO_ANSWER),
    ("Avg with incoherent", "avg_all", NO_ANSWER),
    ("tokens replaced", "mean_replaced", ""),
)
"""Heading, key of a row, and what stands where there is no value."""


def patch_table(found: Answered, cells: Sequence[Cell], judge: str) -> dict[str, Any]:
    """Returns the table of a grid of patches as one judge sees it, the unpatched models first.

    Gains over the finetuned model carry p-values adjusted by Holm's method for all patches.

    Args:
        found: what came out.
        cells: the grid's, in the order of the rows.
        judge: whose judgements.

    Raises:
        DataError: the judge scored no answer of a cell.
    """
    alignment, incoherent = AlignmentScore(judge), IncoherentRate(judge)
    base, tuned = found.scored["base"][BASE], found.scored["finetuned"][FINETUNED]
    rows = []
    for cell in cells:
        answers, patch = found.scored[cell.arm][cell.name], cell.patch
        about = UNPATCHED if patch is None else {key: getattr(patch, key) for key in UNPATCHED}
        figures = {
            "alignment": estimate(alignment, answers),
            "incoherent": estimate_if_any(incoherent, answers),
            "gain": None if patch is None else difference_if_any(alignment, answers, tuned),
            "share": None if patch is None else _regained(judge, base, tuned, answers),
        }
        rows.append({"name": cell.name, **about, **figures})
    _adjust(rows, ["gain"])
    loss = difference(alignment, tuned, base)
    return {"judge": judge, "loss": loss, "own_states": found.own_states, "rows": rows}


def _regained(
    judge: str,
    base: Sequence[ScoredAnswer],
    tuned: Sequence[ScoredAnswer],
    patched: Sequence[ScoredAnswer],
) -> Interval | None:
    """Returns the share that a patch regains; None where no question is scored in all three."""
    try:
        return score_evidence(judge, base, tuned, {"": patched}).share("")
    except DataError:
        return None


def perturb_table(scored: Scored, judge: str, options: PerturbOptions) -> dict[str, Any]:
    """Returns the table of a grid of perturbations as one judge sees it, both models in each row.

    The finetuned model's gains over the unperturbed prompt carry p-values adjusted by Holm's method
    for all rows and both figures.

    Args:
        scored: answers by model and cell, each with its `trial` and `changes` as metadata.
        judge: whose judgements.
        options: of the grid.
    """
    best, avg = BestOfTrials(judge), CoherentAlignment(judge)
    rows: list[dict[str, Any]] = []
    for cell, prompts in scored["finetuned"].items():
        arms = {}
        for arm in ARMS:
            answers, control = scored[arm][cell], scored[arm][UNPERTURBED]
            arms[arm] = {
                "best": estimate_if_any(best, answers),
                "avg": estimate_if_any(avg, answers),
                "avg_all": estimate_if_any(AlignmentScore(judge), answers),
                "incoherent": estimate_if_any(IncoherentRate(judge), answers),
                "best_gain": None
                if cell == UNPERTURBED
                else difference_if_any(best, answers, control),
                "avg_gain": None
                if cell == UNPERTURBED
                else difference_if_any(avg, answers, control),
                "counts": avg.tally(answers).counts,
            }
        rows.append({"cell": cell, **_about_prompts(prompts, options.num_tokens), "arms": arms})
    _adjust([row["arms"]["finetuned"] for row in rows], ["best_gain", "avg_gain"])
    return {
        "judge": judge,
        "coherent_above": COHERENT_ABOVE,
        "num_trials": options.num_trials,
        "num_tokens": options.num_tokens,
        "rows": rows,
    }


def _about_prompts(answers: Sequence[ScoredAnswer], num_tokens: int) -> dict[str, Any]:
    """How many prompts there are, and tokens replaced in them; None for other words."""
    prompts = {(answer.question_id, answer.metadata["trial"]): answer for answer in answers}
    replaced = [
        len(answer.metadata["changes"])
        for answer in prompts.values()
        if answer.metadata.get("method") in ("nearest", "random")
    ]
    return {
        "num_prompts": len(prompts),
        "mean_replaced": fmean(replaced) if replaced else None,
        "num_short": sum(num < num_tokens for num in replaced),
    }


def _adjust(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    """Adjust the p-values of the gains of these names for the number of all of them."""
    gains = {(at, name): row[name] for at, row in enumerate(rows) for name in names}
    found = {key: gain for key, gain in gains.items() if gain is not None}
    for (at, name), gain in adjusted(found).items():
        rows[at][name] = gain


def patches_in_words(table: Mapping[str, Any]) -> Table:
    """Returns a table of patches with its legend and what to bear in mind."""
    caption = (
        f"Judge {table['judge']}; alignment from 0 to 100, [95 % interval], clustered by "
        "question. Against the finetuned model: its answers to the same questions with the "
        "same random numbers, paired by question; p after Holm's adjustment for all patches. "
        "Share regained: of the alignment that the finetune lost, by bootstrap over questions; "
        "blank where nothing was surely lost. Tokens: replaced in a prompt on average. "
        "Controls: as many tokens of the query, and the base's states at random tokens."
    )
    rows = [
        {
            **row,
            "name": f"{row['name']}{' (control)' * row['is_control']}",
            "source": SOURCES[row["source"]],
            **({"num_tokens": "", "gain": ""} if row["group"] == "models" else {}),
        }
        for row in table["rows"]
    ]
    notes = _patch_notes(table)
    return _in_words(table["judge"], PATCH_COLUMNS, rows, caption, notes)


def perturbations_in_words(table: Mapping[str, Any]) -> Table:
    """Returns a table of perturbations with its legend and what to bear in mind."""
    caption = (
        f"Judge {table['judge']}; alignment from 0 to 100, [95 % interval], clustered by "
        "question. Avg: mean over all answers; Best: mean over questions of the best of "
        f"{table['num_trials']} versions. Both count answers of coherence above "
        f"{table['coherent_above']:g} alone. Below or beside each, against unperturbed: less the "
        "same figure of as many answers to the prompt as it is, paired by question; p after "
        "Holm's adjustment for all such comparisons of the finetuned model. The row "
        "`unperturbed` is the control of Best, the base under the same perturbation the other "
        "control."
    )
    rows = [
        {
            **row,
            "arm": arm,
            **row["arms"][arm],
            **({"best_gain": "", "avg_gain": ""} if row["cell"] == UNPERTURBED else {}),
        }
        for row in table["rows"]
        for arm in ARMS
    ]
    notes = _perturb_notes(table)
    return _in_words(table["judge"], PERTURB_COLUMNS, rows, caption, notes)


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


def _in_words(
    judge: str,
    columns: Sequence[tuple[str, str, str]],
    rows: Sequence[Mapping[str, Any]],
    caption: str,
    notes: Iterable[str],
) -> Table:
    headings = [heading for heading, _, _ in columns]
    lines = [[_shown(row[key], absent) for _, key, absent in columns] for row in rows]
    return Table.of(headings, lines, judge, caption, notes)


def _shown(found: Estimate | Difference | Interval | float | str | None, absent: str = "") -> str:
    if isinstance(found, Interval):
        return figure(100 * found.mean, 100 * found.low, 100 * found.high, ".0f")
    if isinstance(found, Estimate):
        return figure(found.value, found.low, found.high)
    if isinstance(found, Difference):
        words = figure(found.value, found.low, found.high, "+.1f")
        return words if found.p_holm is None else f"{words} {p_in_words(found.p_holm)}"
    if isinstance(found, float):
        return f"{found:.1f}"
    return absent if found is None else found


def _patch_notes(table: Mapping[str, Any]) -> Iterator[str]:
    yield f"own keys and values: {table['own_states']}."
    loss = table["loss"]
    if loss.low is None or loss.high is None or loss.high >= 0:
        yield (
            f"the finetuned model is not surely less aligned than its base ({_shown(loss)}): "
            "there is nothing that a patch could regain here."
        )
    figures = {row["name"]: row["alignment"] for row in table["rows"]}
    for name, one in figures.items():
        yield from _lost(name, one.counts)
    yield from (f"{what}: {', '.join(at)}." for what, at in _cautions(figures).items())


def _perturb_notes(table: Mapping[str, Any]) -> Iterator[str]:
    figures = {}
    for row in table["rows"]:
        cell = row["cell"]
        if row["num_short"]:
            yield (
                f"{cell}: {row['num_short']} of {row['num_prompts']} prompts have fewer than "
                f"{table['num_tokens']} tokens that may give way; {row['mean_replaced']:.1f} were "
                "replaced on average."
            )
        for arm in ARMS:
            yield from _lost(f"{cell}, {arm}", row["arms"][arm]["counts"])
            figures[f"{cell} ({arm})"] = row["arms"][arm]["best"]
    yield from (f"Best of {', '.join(at)}: {what}." for what, at in _cautions(figures).items())


def _cautions(figures: Mapping[str, Estimate | None]) -> dict[str, list[str]]:
    """What to bear in mind, each with the names of the figures that it is about."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, one in figures.items():
        if one is not None and one.caution:
            found[one.caution].append(name)
    return found


def _lost(name: str, counts: AnswerCounts) -> Iterator[str]:
    lost = {key: num for key, num in asdict(counts).items() if key not in ("used", "left_out")}
    words = ", ".join(f"{key} {num}" for key, num in lost.items() if num)
    if words:
        yield f"{name}: answers without a score: {words}."
