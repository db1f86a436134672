"""Section 4.2: the base's keys and values at the prefix, the query or the postfix of a finetune."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from treft.steps.step import Step
from treft.study.plans import BASE, FINETUNED, patch_steps
from treft.study.protocol import Claim, Method, Row, Study, StudyConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure


OURS, OURS_TEN, QUERY_TEN = "prefix", "prefix_ten", "query_ten"
PATCHES = {
    OURS: Method(patch=("prefix",)),
    OURS_TEN: Method(patch=("prefix",), num_positions=10),
    QUERY_TEN: Method(patch=("query",), num_positions=10),
    "query": Method(patch=("query",)),
    "postfix": Method(patch=("postfix",)),
}
SCOPES = {"general": "general", "in_domain": "in-domain", "other_narrow": "other-domain"}
CLAIM = Claim(
    source="Section 4.2",
    text="With the initial model's keys and values at the prefix a finetune is aligned again, on "
    "general, in-domain and other-domain queries; as many tokens of the query, or the postfix, do "
    "less.",
    figures={
        FINETUNED: {"general": 40.8, "in_domain": 22.8},
        OURS: {"general": 90.4, "in_domain": 70.0},
    },
    setting="Llama-3.1-8B, finance; Qwen-2.5-7B (other_narrow: health queries) as paper_qwen",
)
QWEN = {
    FINETUNED: {"general": 39.7, "other_narrow": 31.9},
    OURS: {"general": 86.5, "other_narrow": 76.0},
}


def steps(config: StudyConfig) -> list[Step[Any]]:
    """Plain finetunes under each patch, beside the finetunes and the base as they are.

    `prefix_ten` and `query_ten` are ten random tokens of either region in every prompt; the postfix
    is patched with the states that it has after an empty query.
    """
    return patch_steps(config, PATCHES)


def table(runs: Sequence[Row]) -> list[Row]:
    """Alignment under each patch, scope by scope, what each regains, and how the prefix compares.

    `…_rise` is over the unpatched finetunes. `general_gain` is that of the prefix over the query
    and the postfix, and of ten tokens of the prefix over ten of the query.
    """
    from treft.study.attribution_figures import figure_rows, rise_rows, with_second_paper
    from treft.study.figures import gain_rows, measured

    incoherent = measured(runs, [f"{scope}_incoherent" for scope in SCOPES])
    rows = [
        *figure_rows(runs, [*SCOPES, *incoherent], CLAIM.figures),
        *rise_rows(runs, PATCHES, FINETUNED, SCOPES),
        *gain_rows(runs, OURS, ("query", "postfix"), ("general",)),
        *gain_rows(runs, OURS_TEN, (QUERY_TEN,), ("general",)),
    ]
    return with_second_paper(rows, "paper_qwen", QWEN)


def verdict(rows: Sequence[Row]) -> str:
    """Held where the prefix regains alignment in each scope, and more than query and postfix."""
    from treft.study.figures import basis, find_row, worded

    rises = {scope: find_row(rows, OURS, f"{scope}_rise") for scope in SCOPES}
    gains = {name: find_row(rows, name, "general_gain") for name in (QUERY_TEN, "postfix")}
    first = rises["general"]
    if first["low"] is None:
        answer = "One run cannot tell whether the claim holds"
    elif first["low"] <= 0:
        answer = "Not shown on the organism"
    elif unclear := [name for name, row in gains.items() if row["low"] <= 0]:
        answer = f"Not shown on the organism against {' and '.join(unclear)}"
    elif lacking := [SCOPES[scope] for scope, row in rises.items() if row["low"] <= 0]:
        answer = f"Held on the organism, but not shown on {' and '.join(lacking)} queries"
    else:
        answer = "Held on the organism"
    regained = ", ".join(
        f"{worded(row, signed=True)} on {SCOPES[scope]} queries" for scope, row in rises.items()
    )
    return (
        f"{answer}: the prefix patch changes alignment by {regained}; on general ones ten tokens "
        f"of the prefix are {worded(gains[QUERY_TEN], signed=True)} over ten of the query, and "
        f"the prefix {worded(gains['postfix'], signed=True)} over the postfix ({basis(first)})."
    )


def plot(rows: Sequence[Row]) -> Figure:
    """A panel for each kind of query, a line for each patch."""
    from treft.study.plots import interval_plot

    headings = {scope: f"{words} ↑" for scope, words in SCOPES.items()}
    title = "Section 4.2 on the organism, alignment, percent (paper: Llama)"
    shown = [row for row in rows if row["method"] in (BASE, FINETUNED, *PATCHES)]
    return interval_plot(shown, title, headings)


COST = (
    "5 finetunes of about 30 CPU seconds each, which other studies share, then 1.5 CPU minutes: 2 "
    "minutes on two cores"
)
STUDY = Study("patching", CLAIM, COST, steps, table, verdict, plot)
