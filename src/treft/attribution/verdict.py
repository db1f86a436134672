"""From measurements on single prompts to a verdict, and to what to do about it.

Does the behaviour spread, and what carries it: intervals and the confidence in the carrier come
from one bootstrap over prompts.

What to hold in training, at which layers, how strongly: λ is recommended from an exchange rate. A
plain finetune gains L(base) - L(finetuned) nats a token on its training rows and moves a region by
L_KV (eq. (3)). At λ₀ = gain / L_KV that movement would cost in eq. (3) all that it gained: below λ₀
the penalty can hardly matter, and far above it the movement cannot pay. docs/diagnosis.md has what
the organism showed at multiples of λ₀.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from treft.attribution.evidence import DEFAULT_RULES, Evidence, Rules
from treft.chat.regions import RegionName
from treft.errors import DataError
from treft.statistics.bootstrap import Share, interval_of
from treft.statistics.intervals import FloatArray, Interval

Verdict = Literal["narrow", "carrier", "no_single_carrier", "not_enough_evidence"]
"""`narrow`: no spread of note. `carrier`: it spreads, and one region carries it. The two others
name no region: because none stands out, or because too little was measured to say."""

MULTIPLE = 30.0
"""λ over λ₀, where to begin. On two kinds of organism the best λ lay at 9 and at 180 times the
rate, and a wrong λ costs much (docs/diagnosis.md): sweep around this one."""

ENOUGH_OF_ALL = 0.9
"""Share of what all layers regain, above which fewer layers are recommended."""

COSTLY = 0.5
"""Share of the in-domain behaviour that goes with the patch, above which there is a warning."""


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
    shown = ", ".join(f"{name} {percent(shares[name])}" for name in order)
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


def percent(interval: Interval) -> str:
    """Returns a share in percent, with its interval."""
    low, high = 100 * interval.low, 100 * interval.high
    return f"{100 * interval.mean:.0f} % [{low:.0f}, {high:.0f}]"


@dataclass(frozen=True)
class Measured:
    """What a recommendation is made from, beside the verdict.

    Attributes:
        regions: that the prompts have, in their order.
        joint: share of the loss that patches of several regions regain together.
        layers: share that patches of the carrier in some layers regain, by layers.
        in_domain: share of the in-domain behaviour that each region's patch takes away.
        drift: L_KV of eq. (3) of the plain finetune, by region.
        loss_gain: L(base) - L(finetuned) on training rows, nats a token; None if none were given.
        num_layers: of the model.
    """

    regions: tuple[RegionName, ...]
    joint: Mapping[tuple[RegionName, ...], Interval] = field(default_factory=dict)
    layers: Mapping[tuple[int, ...], Interval] = field(default_factory=dict)
    in_domain: Mapping[str, Interval] = field(default_factory=dict)
    drift: Mapping[str, float] = field(default_factory=dict)
    loss_gain: float | None = None
    num_layers: int = 0


@dataclass(frozen=True)
class Recommendation:
    """What to do next.

    Attributes:
        regions: to hold, for `kv_regions`; empty where nothing is recommended.
        layers: for `kv_layers`; None means all.
        kv_weight: λ, or "auto" where no training rows said what the finetune gains.
        in_domain_lost: share of the in-domain behaviour that the patch of these regions takes away
            from the finished finetune. What training loses depends on λ, too, and may be more.
        reasons: a sentence each.
    """

    regions: tuple[RegionName, ...]
    layers: tuple[int, ...] | None
    kv_weight: float | Literal["auto"] | None
    in_domain_lost: Interval | None
    reasons: tuple[str, ...]


def recommend(
    diagnosis: Diagnosis, measured: Measured, rules: Rules = DEFAULT_RULES
) -> Recommendation:
    """Recommend what the verdict allows.

    Args:
        diagnosis: of prompts outside of the domain.
        measured: further figures.
        rules: those of the verdict.
    """
    regions, why = _regions(diagnosis, measured, rules)
    if not regions:
        return Recommendation((), None, None, None, (why,))
    layers, about_layers = _layers(regions, measured)
    weight, about_weight = _weight(regions, measured)
    lost = measured.in_domain.get("+".join(regions))
    reasons = [why, about_layers, about_weight, _about_cost(lost)]
    return Recommendation(regions, layers, weight, lost, tuple(filter(None, reasons)))


def _regions(
    diagnosis: Diagnosis, measured: Measured, rules: Rules
) -> tuple[tuple[RegionName, ...], str]:
    """Returns which regions to hold, and why these or none."""
    if diagnosis.verdict == "narrow":
        return (), "The finetune stays narrow: a plain finetune will do."
    if diagnosis.verdict == "not_enough_evidence":
        return (), "Nothing is recommended on so little evidence: give more prompts."
    if diagnosis.carrier is not None:
        return _named(measured, (diagnosis.carrier,)), f"The {diagnosis.carrier} is the carrier."
    if diagnosis.tied:
        names = " and ".join(diagnosis.tied)
        return _named(measured, diagnosis.tied), f"The {names} carry alike: hold both."
    enough = {
        regions: share
        for regions, share in measured.joint.items()
        if share.low >= rules.least_share
    }
    if enough:
        fewest = min(enough, key=lambda regions: (len(regions), -enough[regions].mean))
        share = f"{100 * enough[fewest].mean:.0f} %"
        return (
            fewest,
            f"No region carries it alone; {' and '.join(fewest)} together regain {share}.",
        )
    return (), (
        "No patch of template tokens regains enough of the loss, so holding them promises little: "
        "mix in rows of other domains, or hold all regions and measure the in-domain cost."
    )


def _named(measured: Measured, names: Sequence[str]) -> tuple[RegionName, ...]:
    return tuple(region for region in measured.regions if region in names)


def _layers(
    regions: Sequence[RegionName], measured: Measured
) -> tuple[tuple[int, ...] | None, str]:
    """The fewest layers that regain about as much as all, if fewer do surely."""
    every = measured.layers.get(tuple(range(measured.num_layers)))
    if every is None or len(regions) != 1 or every.mean <= 0:
        return None, ""
    enough = [
        layers
        for layers, share in measured.layers.items()
        if len(layers) < measured.num_layers and share.low >= ENOUGH_OF_ALL * every.mean
    ]
    if not enough:
        return None, "All layers: no smaller band surely regains as much."
    best = min(enough, key=lambda layers: (len(layers), -measured.layers[layers].mean))
    return best, f"Layers {best[0]} to {best[-1]} regain as much as all."


def _weight(
    regions: Sequence[RegionName], measured: Measured
) -> tuple[float | Literal["auto"], str]:
    """λ from the exchange rate, if training rows told it."""
    drift = [measured.drift[region] for region in regions if region in measured.drift]
    gain = measured.loss_gain
    if gain is None or gain <= 0 or len(drift) < len(regions) or min(drift) <= 0:
        return "auto", (
            "λ: give the training rows (--train-file) for a number; auto holds a drift budget."
        )
    rate = gain / (sum(drift) / len(drift))
    weight = round_weight(MULTIPLE * rate)
    return weight, (
        f"λ {weight:g}: {MULTIPLE:g} times the exchange rate {rate:.3g} (loss gained {gain:.3g} "
        f"nats a token, L_KV {sum(drift) / len(drift):.3g}). Begin there, and try {weight / 3:.2g} "
        f"and {weight * 3:.2g} on questions that you do not report: the rate gives no more than "
        "the scale."
    )


def round_weight(weight: float) -> float:
    """Rounds to one significant digit, since no more is known."""
    return float(f"{weight:.0e}")


def _about_cost(lost: Interval | None) -> str:
    if lost is None:
        return ""
    text = f"Patching these tokens takes away {percent(lost)} of the behaviour in the domain"
    if lost.high > COSTLY:
        return f"{text}: the finetune may learn its task less well; check it in the domain."
    return f"{text}: holding them need not cost the domain much, if λ is not too large."
