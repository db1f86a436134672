"""Verdicts on evidence whose right answer is known by construction."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from treft.attribution.evidence import Evidence, Rules
from treft.attribution.verdict import decide
from treft.errors import ConfigError, DataError
from treft.statistics.intervals import FloatArray


def evidence(
    shares: Mapping[str, float],
    *,
    num: int = 40,
    loss: float = 60.0,
    noise: float = 20.0,
    seed: int = 0,
    least_loss: float = 5.0,
) -> Evidence:
    """Scores that fall by `loss` on average and of which each patch regains a known share."""
    rng = np.random.default_rng(seed)
    base = 95 + rng.normal(0, noise / 4, num)
    falls = loss + rng.normal(0, noise, num)
    patched = {
        name: base - falls + share * falls + rng.normal(0, noise, num)
        for name, share in shares.items()
    }
    questions = tuple(f"q{index}" for index in range(num))
    return Evidence(questions, base, base - falls, patched, (), "alignment", least_loss)


def test_names_the_region_that_regains_most() -> None:
    found = decide(evidence({"prefix": 0.8, "query": 0.3, "postfix": 0.0}))
    assert (found.verdict, found.carrier, found.tied) == ("carrier", "prefix", ())
    assert found.confidence is not None
    assert found.confidence > 0.99
    assert "prefix 8" in found.reason
    assert found.num_questions == 40


def test_figures_are_means_and_ratios_of_means() -> None:
    given = evidence({"prefix": 0.8, "postfix": 0.1})
    found = decide(given)
    fall = given.base - given.finetuned
    assert found.loss.mean == pytest.approx(sum(fall) / len(fall))
    gained = sum(given.patched["prefix"] - given.finetuned)
    assert found.shares["prefix"].mean == pytest.approx(gained / sum(fall))
    assert found.shares["prefix"].low < found.shares["prefix"].mean < found.shares["prefix"].high


def test_a_finetune_without_spread_is_narrow() -> None:
    found = decide(evidence({"prefix": 0.8}, loss=0.0, noise=4.0))
    assert (found.verdict, found.carrier, found.shares) == ("narrow", None, {})


def test_a_loss_around_the_threshold_is_left_open() -> None:
    found = decide(evidence({"prefix": 0.8}, loss=5.0))
    assert found.verdict == "not_enough_evidence"
    assert "more prompts" in found.reason


def test_few_prompts_allow_no_verdict() -> None:
    found = decide(evidence({"prefix": 0.9, "query": 0.0}, num=9))
    assert found.verdict == "not_enough_evidence"
    assert "9 prompts" in found.reason


def test_two_regions_that_carry_alike_are_both_named() -> None:
    found = decide(evidence({"prefix": 0.6, "postfix": 0.6, "query": 0.0}, num=200))
    assert found.verdict == "no_single_carrier"
    assert set(found.tied) == {"prefix", "postfix"}
    assert found.carrier is None


def test_no_region_that_regains_enough() -> None:
    found = decide(evidence({"prefix": 0.08, "postfix": 0.02, "query": 0.05}, num=100))
    assert found.verdict == "no_single_carrier"
    assert found.tied == ()


def test_noise_that_hides_the_order_mostly_allows_no_verdict() -> None:
    found = [
        decide(evidence({"prefix": 0.6, "postfix": 0.5}, num=12, noise=60.0, seed=seed))
        for seed in range(50)
    ]
    assert sum(one.verdict == "not_enough_evidence" for one in found) >= 35
    assert sum(one.carrier == "postfix" for one in found) <= 5  # a bootstrap of 12 is rough


def test_a_single_region_is_its_own_best() -> None:
    assert decide(evidence({"postfix": 0.7})).carrier == "postfix"


def test_the_same_evidence_gives_the_same_verdict() -> None:
    given = evidence({"prefix": 0.5, "query": 0.3})
    assert decide(given) == decide(given)


@pytest.mark.parametrize("num", [20, 60])
def test_intervals_of_shares_cover(num: int) -> None:
    """Of 95 % intervals over 400 simulated studies; the bootstrap is a little short at 20."""
    rules = Rules(num_resamples=500)
    inside = 0
    for seed in range(400):
        found = decide(evidence({"prefix": 0.5}, num=num, seed=seed), rules).shares["prefix"]
        inside += found.low <= 0.5 <= found.high
    assert 0.91 <= inside / 400 <= 0.98


def test_wrong_names_are_rare_when_regions_are_alike() -> None:
    """Two regions that carry exactly alike: one of them must seldom be called the carrier."""
    rules = Rules(num_resamples=500)
    shares = {"prefix": 0.5, "postfix": 0.5}
    named = sum(
        decide(evidence(shares, seed=seed), rules).verdict == "carrier" for seed in range(200)
    )
    assert named <= 0.15 * 200  # each of the two by chance in 5 %, and some more


@pytest.mark.parametrize(
    ("patched", "message"),
    [
        ({}, "at least one"),
        ({"prefix": np.zeros(3)}, "3"),
        ({"prefix": np.array([0.0, np.nan])}, "'b'"),
    ],
)
def test_evidence_that_cannot_be(patched: dict[str, FloatArray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        decide(Evidence(("a", "b"), np.ones(2), np.zeros(2), patched, (), "alignment", 5.0))


@pytest.mark.parametrize(
    "fields",
    [{"least_share": 0.0}, {"confidence": 1.0}, {"least_questions": 1}, {"num_resamples": 10}],
)
def test_rules_that_cannot_be(fields: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Rules(**fields)  # type: ignore[arg-type]
