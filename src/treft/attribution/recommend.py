"""What to do about a spread: which regions to hold in training, at which layers, how strongly.

λ is recommended from an exchange rate. A plain finetune gains L(base) - L(finetuned) nats a token
on its training rows and moves a region by L_KV (eq. (3)). At λ₀ = gain / L_KV that movement would
cost in eq. (3) all that it gained: below λ₀ the penalty can hardly matter, and far above it the
movement cannot pay. docs/diagnosis.md has what the organism showed at multiples of λ₀.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from treft.attribution.evidence import DEFAULT_RULES, Rules
from treft.attribution.verdict import Diagnosis
from treft.chat.regions import RegionName
from treft.statistics.intervals import Interval

MULTIPLE = 30.0
"""λ over λ₀, where to begin. On two kinds of organism the best λ lay at 9 and at 180 times the
rate, and a wrong λ costs much (docs/diagnosis.md): sweep around this one."""

ENOUGH_OF_ALL = 0.9
"""Share of what all layers regain, above which fewer layers are recommended."""

COSTLY = 0.5
"""Share of the in-domain behaviour that goes with the patch, above which there is a warning."""


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
    shown = f"{100 * lost.mean:.0f} % [{100 * lost.low:.0f}, {100 * lost.high:.0f}]"
    text = f"Patching these tokens takes away {shown} of the behaviour in the domain"
    if lost.high > COSTLY:
        return f"{text}: the finetune may learn its task less well; check it in the domain."
    return f"{text}: holding them need not cost the domain much, if λ is not too large."
