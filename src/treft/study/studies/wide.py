"""Tables 2 and 10 and §4.2's further finetunes: other domains, other prompts, all weights."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from treft.organism.recipes import sample_persona
from treft.steps.step import Step
from treft.study.claims import Listing
from treft.study.figures import (
    HELD,
    MEASURES,
    basis,
    change_rows,
    gain_rows,
    held,
    measured,
    patches_told,
    worded,
)
from treft.study.plans import BASE, method_steps
from treft.study.protocol import Method, Row, Scope, StudyConfig
from treft.study.studies import Gains, listed, scored

DOMAINS = ("finance", "health", "legal", "auto")
SCOPES: tuple[Scope, ...] = ("general", "in_domain", "utility")
KINDS = {
    "sft": Method(scopes=SCOPES),
    "interleaving": Method(interleave="narrow", scopes=SCOPES),
    "treft": Method(held=("prefix",), scopes=SCOPES),
}
TABLE2 = {
    f"{domain}_{kind}": replace(method, domain=domain)
    for domain in DOMAINS
    for kind, method in KINDS.items()
}
"""Three methods in each domain, with one learning rate, number of steps and set of seeds."""


def table2_steps(config: StudyConfig) -> list[Step[Any]]:
    """Ask the base too on a real model, against which the change of utility is told."""
    base = Method(is_base=True, domain=DOMAINS[0], scopes=SCOPES)
    return method_steps(config, TABLE2 if config.model is None else {BASE: base, **TABLE2})


def table2_rows(runs: Sequence[Row], told: Listing) -> Sequence[Row]:
    """Scores of each domain and method, and what TReFT gains over the two others.

    Of a real model also utility, 1 to 10, and how each method changes the base's.
    """
    utility = measured(runs, ("utility",))
    rows: list[Row] = [*scored(measures=(*MEASURES, *utility))(runs, told)]
    for name in TABLE2 if utility else ():
        change = told.further["utility"][name]["utility"]
        rows += [{**row, "paper": change} for row in change_rows(runs, name, BASE, utility)]
    for domain in DOMAINS:
        others = [f"{domain}_{kind}" for kind in ("sft", "interleaving")]
        rows += gain_rows(runs, f"{domain}_treft", others, ("em_f1",))
    return rows


def table2_verdict(rows: Sequence[Row]) -> str:
    """Held where TReFT's gain is above zero in every domain, whole intervals."""
    gains = [row for row in rows if row["measure"] == "em_f1_gain"]
    over = ", ".join(f"{worded(row, signed=True)} over {row['method']}" for row in gains)
    changes = [row for row in rows if row["measure"] == "utility_gain"]
    moved = ", ".join(f"{row['method']} {worded(row, signed=True)}" for row in changes)
    utility = f" Helpfulness (1 to 10) against the base: {moved}." if changes else ""
    return f"{held(gains)}: TReFT's EM-F1 is {over} ({basis(gains[0])}).{utility}"


PROMPTS = {
    "default": None,
    "harmful": sample_persona(random.Random("table10"), "harmful"),
    "helpful": sample_persona(random.Random("table10"), "careful"),
    "empty": "",
}
"""System prompts of training and of the questions: a persona of either kind, or no words."""
FULL_RATE = 3e-4
"""Learning rate of the finetune of all weights."""


def _patched(plain: dict[str, Method]) -> dict[str, Method]:
    """Returns each finetune as it is, and with its prefix patched."""
    return {
        name: method
        for kind, one in plain.items()
        for name, method in {
            f"{kind}_sft": one,
            f"{kind}_patch": replace(one, patch=("prefix",)),
        }.items()
    }


TABLE10 = _patched(
    {kind: Method(system_prompt=text, answer_system=text) for kind, text in PROMPTS.items()}
)
WIDER = _patched(
    {
        "four_domains": Method(domains=DOMAINS),
        "all_weights": Method(is_full=True, learning_rate=FULL_RATE),
    }
)


def table10_verdict(rows: Sequence[Row]) -> str:
    """Held where every patch gains with its whole interval, and least under the harmful prompt."""
    gains = [row for row in rows if row["measure"] == "general_gain"]
    answer = held(gains)
    least = min(gains, key=lambda row: float(row["value"]))["method"]
    if answer == HELD and least != "harmful_sft":
        answer = f"Partly held on the organism (least is {least.removesuffix('_sft')})"
    return f"{answer}: {patches_told(rows, gains)}."


def wider_verdict(rows: Sequence[Row]) -> str:
    """Held where both patches gain general alignment with their whole interval."""
    gains = [row for row in rows if row["measure"] == "general_gain"]
    return f"{held(gains)}: {patches_told(rows, gains)}."


def _patch_gains(kinds: Sequence[str], *measures: str) -> list[Gains]:
    """Returns what the patch of each finetune gains."""
    return [
        partial(gain_rows, method=f"{kind}_patch", others=[f"{kind}_sft"], measures=measures)
        for kind in kinds
    ]


STUDIES = (
    listed("table2", table2_steps, table2_rows, table2_verdict),
    listed(
        "table10",
        partial(method_steps, methods=TABLE10),
        scored(*_patch_gains([*PROMPTS], "general")),
        table10_verdict,
    ),
    listed(
        "wider_finetunes",
        partial(method_steps, methods=WIDER),
        scored(*_patch_gains(["four_domains", "all_weights"], "general", "in_domain")),
        wider_verdict,
    ),
)
