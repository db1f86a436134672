"""From measurements on single prompts to a verdict: does it spread, and what carries it.

Intervals and the confidence in the carrier come from one bootstrap over prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from treft.attribution.evidence import DEFAULT_RULES, Evidence, Rules
from treft.errors import DataError
from treft.statistics.bootstrap import Share, interval_of
from treft.statistics.intervals import FloatArray, Interval

Verdict = Literal["narrow", "carrier", "no_single_carrier", "not_enough_evidence"]
"""`narrow`: no spread of note. `carrier`: it spreads, and one region carries it. The two others
name no region: because none stands out, or because too little was measured to say."""


@dataclass(frozen=True)
class Diagnosis:
    """The verdict and what it stands on.

    Attributes:
        verdict: see `Verdict`.
        reason: in words, with the figures that decided.
        carrier: the region, if the verdict is `carrier`; for `no_single_carrier` None.
        tied: regions that carry alike, best first, if that is why there is no single carrier.
        confidence: share of resamples in which the best region is the best; None without spread.
        loss: mean fall from base to finetuned, with its interval.
        shares: share of the loss that each region's patch regains; empty without spread.
        measure: what was measured.
        num_questions: P.
    """

    verdict: Verdict
    reason: str
    carrier: str | None
    tied: tuple[str, ...]
    confidence: float | None
    loss: Interval
    shares: Mapping[str, Interval]
    measure: str
    num_questions: int


def decide(evidence: Evidence, rules: Rules = DEFAULT_RULES) -> Diagnosis:
    """Give a verdict, or say that the evidence allows none.

    Args:
        evidence: of one measure.
        rules: thresholds; the defaults are those of the command.

    Raises:
        DataError: there is no patched region.
    """
    if not evidence.patched:
        raise DataError("a verdict needs at least one patched region.")
    loss = evidence.loss(rules)
    verdict, reason = _spread(evidence, loss.interval, rules)
    found = Diagnosis(
        verdict=verdict or "not_enough_evidence",
        reason=reason,
        carrier=None,
        tied=(),
        confidence=None,
        loss=loss.interval,
        shares={},
        measure=evidence.measure,
        num_questions=len(evidence.questions),
    )
    return found if verdict is not None else _carrier(found, evidence.gains(loss), rules)


def _spread(evidence: Evidence, loss: Interval, rules: Rules) -> tuple[Verdict | None, str]:
    """Returns whether there is a spread to attribute; None if there is."""
    shown = f"{evidence.measure} falls by {_in_words(loss)} outside of the domain"
    num = len(evidence.questions)
    if num < rules.least_questions:
        return "not_enough_evidence", (
            f"{num} prompts are too few for a verdict: give at least {rules.least_questions}."
        )
    if loss.high < evidence.least_loss:
        return "narrow", f"{shown}, less than {evidence.least_loss:g}: the finetune stays narrow."
    if loss.low < evidence.least_loss:
        return "not_enough_evidence", (
            f"{shown}: that may be more or less than {evidence.least_loss:g}. Give more prompts."
        )
    return None, shown


def _carrier(spread: Diagnosis, found: Mapping[str, Share], rules: Rules) -> Diagnosis:
    """Returns which region stands out, if one does."""
    shares = {name: share.interval for name, share in found.items()}
    draws = {name: share.draws for name, share in found.items()}
    order = sorted(shares, key=lambda name: -shares[name].mean)
    best = order[0]
    others = np.max([draws[name] for name in order[1:]] or [np.full(len(draws[best]), -np.inf)], 0)
    confidence = float((draws[best] > others).mean())
    shown = ", ".join(f"{name} {_percent(shares[name])}" for name in order)
    words = f"share of the loss that a patch regains: {shown}"
    spread = replace(spread, shares=shares, confidence=confidence)
    if all(share.high < rules.least_share for share in shares.values()):
        reason = f"{words}; no region alone regains {100 * rules.least_share:.0f} %."
        return replace(spread, verdict="no_single_carrier", reason=reason)
    best_in = f"{words}; {best} is the best in {100 * confidence:.0f} % of resamples"
    is_enough = shares[best].low >= rules.least_share
    if is_enough and confidence >= rules.confidence:
        return replace(spread, verdict="carrier", reason=f"{best_in}.", carrier=best)
    tied = _tied(order, draws, rules)
    if is_enough and tied:
        reason = f"{words}; {' and '.join(tied)} carry it alike."
        return replace(spread, verdict="no_single_carrier", reason=reason, tied=tied)
    return replace(spread, reason=f"{best_in}, which does not settle it. Give more prompts.")


def _tied(order: Sequence[str], draws: Mapping[str, FloatArray], rules: Rules) -> tuple[str, ...]:
    """Regions whose distance to the best is known to be small; empty if there is none."""
    tied = [order[0]]
    for name in order[1:]:
        distance = interval_of(0.0, draws[order[0]] - draws[name], rules.confidence)
        if -rules.least_share < distance.low and distance.high < rules.least_share:
            tied.append(name)
    return tuple(tied) if len(tied) > 1 else ()


def _in_words(interval: Interval) -> str:
    return f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _percent(interval: Interval) -> str:
    low, high = 100 * interval.low, 100 * interval.high
    return f"{100 * interval.mean:.0f} % [{low:.0f}, {high:.0f}]"
