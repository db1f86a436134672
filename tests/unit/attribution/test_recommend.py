"""Recommendations from verdicts and figures that are given."""

from __future__ import annotations

import pytest

from treft.attribution.verdict import Diagnosis, Measured, Verdict, recommend, round_weight
from treft.statistics.intervals import Interval

LOSS = Interval(0.7, 0.6, 0.8)
ALL = (0, 1, 2, 3)


def diagnosis(
    verdict: Verdict, carrier: str | None = None, tied: tuple[str, ...] = ()
) -> Diagnosis:
    return Diagnosis(verdict, "because", carrier, tied, 0.99, LOSS, {}, "margin", 40)


def measured(**fields: object) -> Measured:
    given: dict[str, object] = {"regions": ("prefix", "query", "postfix"), "num_layers": 4}
    return Measured(**(given | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("verdict", ["narrow", "not_enough_evidence"])
def test_nothing_is_held_without_a_spread_or_evidence(verdict: Verdict) -> None:
    found = recommend(diagnosis(verdict), measured(loss_gain=0.5, drift={"prefix": 1.0}))
    assert (found.regions, found.kv_weight) == ((), None)
    assert len(found.reasons) == 1


def test_the_carrier_is_held_at_thirty_times_the_exchange_rate() -> None:
    given = measured(drift={"prefix": 2.0, "postfix": 5.0}, loss_gain=0.8)
    found = recommend(diagnosis("carrier", "prefix"), given)
    assert found.regions == ("prefix",)
    assert found.kv_weight == 10.0  # 30 x 0.8 / 2, to one digit
    assert any("0.4" in reason for reason in found.reasons)


@pytest.mark.parametrize(
    "fields",
    [
        {"drift": {"prefix": 1.0}},
        {"drift": {}, "loss_gain": 1.0},
        {"drift": {"prefix": 1.0}, "loss_gain": -0.1},
        {"drift": {"prefix": 0.0}, "loss_gain": 1.0},
    ],
)
def test_auto_where_no_rate_is_known(fields: dict[str, object]) -> None:
    found = recommend(diagnosis("carrier", "prefix"), measured(**fields))
    assert found.kv_weight == "auto"


def test_tied_regions_are_held_together_in_the_prompts_order() -> None:
    found = recommend(diagnosis("no_single_carrier", tied=("postfix", "prefix")), measured())
    assert found.regions == ("prefix", "postfix")


def test_regions_that_carry_together_only() -> None:
    joint = {("prefix", "postfix"): Interval(0.6, 0.5, 0.7)}
    found = recommend(diagnosis("no_single_carrier"), measured(joint=joint))
    assert found.regions == ("prefix", "postfix")
    assert any("60 %" in reason for reason in found.reasons)


def test_nothing_that_helps_is_said_so() -> None:
    joint = {("prefix", "postfix"): Interval(0.1, 0.05, 0.15)}
    found = recommend(diagnosis("no_single_carrier"), measured(joint=joint))
    assert found.regions == ()
    assert "other domains" in found.reasons[0]


def test_fewer_layers_only_where_they_surely_do_as_much() -> None:
    layers = {
        ALL: Interval(0.60, 0.5, 0.7),
        (0, 1): Interval(0.58, 0.55, 0.61),
        (2, 3): Interval(0.60, 0.40, 0.80),
    }
    found = recommend(diagnosis("carrier", "prefix"), measured(layers=layers))
    assert found.layers == (0, 1)  # the low end of 2 to 3 is under nine tenths of 0.6
    del layers[0, 1]
    assert recommend(diagnosis("carrier", "prefix"), measured(layers=layers)).layers is None


def test_the_cost_in_the_domain_is_told() -> None:
    cheap = {"prefix": Interval(0.05, 0.04, 0.06)}
    dear = {"query": Interval(0.7, 0.6, 0.8)}
    first = recommend(diagnosis("carrier", "prefix"), measured(in_domain=cheap))
    assert first.in_domain_lost == cheap["prefix"]
    assert "need not cost" in first.reasons[-1]
    second = recommend(diagnosis("carrier", "query"), measured(in_domain=dear))
    assert "less well" in second.reasons[-1]


@pytest.mark.parametrize(("given", "rounded"), [(57.6, 60.0), (0.0123, 0.01), (9.6, 10.0)])
def test_weights_are_rounded_to_one_digit(given: float, rounded: float) -> None:
    assert round_weight(given) == pytest.approx(rounded)
