"""No claim of the paper: every mitigation at several strengths, for choosing one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from treft.steps.step import Step
from treft.study.plans import method_steps
from treft.study.protocol import Claim, Row, Study, StudyConfig
from treft.study.strengths import CHOSEN, TRIED, mitigated

if TYPE_CHECKING:
    from matplotlib.figure import Figure


METHODS = {
    f"{name}_{strength:g}": mitigated(name, strength)
    for name, strengths in TRIED.items()
    for strength in strengths
}
CLAIM = Claim(
    source="no table: our choice of strengths",
    text="The strength of each mitigation that the study `mitigations` uses is the best of those "
    "tried, by EM-F1 on validation questions.",
    figures={name: {} for name in METHODS},
    setting="finetuning seed 0 and validation questions, whatever --seeds and --split say",
)


def steps(config: StudyConfig) -> list[Step[Any]]:
    """Every mitigation at each strength tried; whatever is asked, on validation and one seed."""
    return method_steps(replace(config, split="validation", num_seeds=1), METHODS)


def table(runs: Sequence[Row]) -> list[Row]:
    """Scores at each strength."""
    from treft.study.figures import score_rows

    return [*score_rows(runs, CLAIM.figures)]


def verdict(rows: Sequence[Row]) -> str:
    """Which strength of each is best, and whether that is the one in use."""
    from treft.study.figures import find_row

    def em_f1(name: str, strength: float) -> float:
        return float(find_row(rows, f"{name}_{strength:g}", "em_f1")["value"])

    best = {
        name: max(strengths, key=lambda strength: em_f1(name, strength))
        for name, strengths in TRIED.items()
    }
    others = [name for name in best if best[name] != CHOSEN[name]]
    answer = f"Not those in use: {', '.join(others)}" if others else "Those in use are the best"
    told = ", ".join(f"{name} {best[name]:g} ({em_f1(name, best[name]):.1f})" for name in best)
    return f"{answer}; the best of those tried, with their EM-F1: {told}."


def plot(rows: Sequence[Row]) -> Figure:
    """General, in-domain and EM-F1, strength by strength."""
    from treft.study.plots import score_plot

    return score_plot(rows, "Strengths of mitigations on the organism, percent")


COST = "44 finetunes of about 30 CPU seconds each, with KL 47 to 66: 13 minutes on two cores"
STUDY = Study("strengths", CLAIM, COST, steps, table, verdict, plot)
