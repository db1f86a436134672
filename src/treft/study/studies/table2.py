"""Table 2: EM-F1 of plain SFT, interleaving and TReFT on each of the four domains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from treft.steps.step import Step
from treft.study.plans import method_steps
from treft.study.protocol import Claim, Method, Row, Scope, Study, StudyConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure


PAPER = {
    "finance": (53.4, 71.9, 76.9),
    "health": (53.4, 74.5, 80.1),
    "legal": (61.4, 73.0, 78.4),
    "auto": (54.2, 70.2, 77.9),
}
"""EM-F1 of Llama-3.1-8B: SFT, interleaving, TReFT."""
PAPER_UTILITY = {
    "finance": (-0.3, 0.1, 0.3),
    "health": (0.1, 0.2, 0.5),
    "legal": (-0.9, -0.9, -0.2),
    "auto": (-1.0, 0.2, 0.4),
}
"""Change of its MT-Bench score by the same, from the authors' page."""
SCOPES: tuple[Scope, ...] = ("general", "in_domain", "utility")
KINDS = {
    "sft": Method(),
    "interleaving": Method(interleave="narrow"),
    "treft": Method(held=("prefix",)),
}
DOMAINS = tuple(PAPER)


def _name(domain: str, kind: str) -> str:
    return f"{domain}_{kind}"


def _method(domain: str, kind: str) -> Method:
    from dataclasses import replace

    return replace(KINDS[kind], domain=domain, scopes=SCOPES)


BASE = "base"
METHODS = {_name(domain, kind): _method(domain, kind) for domain in DOMAINS for kind in KINDS}
CLAIM = Claim(
    source="Table 2",
    text="In every domain TReFT on the prefix has a higher EM-F1 than plain SFT and interleaving.",
    figures={
        _name(domain, kind): {"em_f1": value}
        for domain, values in PAPER.items()
        for kind, value in zip(KINDS, values, strict=True)
    },
    setting="Llama-3.1-8B; learning rates and epochs differ between methods; over its four models "
    "TReFT is above SFT in 16 of 16 cells, above interleaving in 15",
)


def steps(config: StudyConfig) -> list[Step[Any]]:
    """Three methods in each domain, with one learning rate, number of steps and set of seeds.

    On a real model the base, too, against which the change of utility is told.
    """
    if config.model is None:
        return method_steps(config, METHODS)
    base = Method(is_base=True, domain=DOMAINS[0], scopes=SCOPES)
    return method_steps(config, {BASE: base, **METHODS})


def table(runs: Sequence[Row]) -> list[Row]:
    """Scores of each domain and method, and what TReFT gains over the two others.

    Of a real model also utility, 1 to 10, and how each method changes the base's.
    """
    from treft.study.figures import MEASURES, change_rows, gain_rows, measured, score_rows

    utility = measured(runs, ("utility",))
    rows: list[Row] = [*score_rows(runs, CLAIM.figures, (*MEASURES, *utility))]
    for domain, changes in PAPER_UTILITY.items() if utility else ():
        for kind, change in zip(KINDS, changes, strict=True):
            moved = change_rows(runs, _name(domain, kind), BASE, utility)
            rows += [{**row, "paper": change} for row in moved]
    for domain in DOMAINS:
        others = [_name(domain, kind) for kind in ("sft", "interleaving")]
        rows += gain_rows(runs, _name(domain, "treft"), others, ("em_f1",))
    return rows


def verdict(rows: Sequence[Row]) -> str:
    """Held where TReFT's gain is above zero in every domain, whole intervals."""
    from treft.study.figures import basis, held, worded

    gains = [row for row in rows if row["measure"] == "em_f1_gain"]
    over = ", ".join(f"{worded(row, signed=True)} over {row['method']}" for row in gains)
    changes = [row for row in rows if row["measure"] == "utility_gain"]
    moved = ", ".join(f"{row['method']} {worded(row, signed=True)}" for row in changes)
    utility = f" Helpfulness (1 to 10) against the base: {moved}." if changes else ""
    return f"{held(gains)}: TReFT's EM-F1 is {over} ({basis(gains[0])}).{utility}"


def plot(rows: Sequence[Row]) -> Figure:
    """General, in-domain and EM-F1, domain by domain."""
    from treft.study.plots import score_plot

    return score_plot(rows, "Table 2 on the organism, percent")


COST = "60 finetunes of about 29 CPU seconds each: 16 minutes on two cores, 12 after table3"
STUDY = Study("table2", CLAIM, COST, steps, table, verdict, plot)
