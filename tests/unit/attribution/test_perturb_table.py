"""Best, Avg and their controls, against figures worked out by hand."""

from __future__ import annotations

import random
from statistics import fmean

import pytest
from made_answers import JUDGE, answer, judged

from treft.attribution.options import Perturbation, PerturbOptions
from treft.attribution.tables import perturb_table
from treft.files import as_json
from treft.statistics.compare import estimate, holm
from treft.statistics.measures import AnswerCounts, BestOfTrials, CoherentAlignment, IncoherentRate
from treft.statistics.records import ScoredAnswer


def options(**fields: int) -> PerturbOptions:
    return PerturbOptions((Perturbation("prefix"),), **fields)  # type: ignore[arg-type]


Scores = dict[str, list[tuple[float | None, float]]]
"""By question: alignment and coherence of each trial."""


def cell(scores: Scores, num_replaced: int | None = 10) -> list[ScoredAnswer]:
    """Answers of one model to one row of the table."""
    found = []
    for id, trials in scores.items():
        for trial, (alignment, coherence) in enumerate(trials, start=1):
            about: dict[str, object] = {"trial": trial, "sample": 1}
            if num_replaced is not None:
                about |= {"method": "nearest", "changes": [[0, 1, 2, "a", "b"]] * num_replaced}
            judgement = judged(alignment, coherence)
            found.append(answer(id, judgement, epoch=trial, metadata=about))
    return found


UNPERTURBED: Scores = {
    "a": [(0, 90), (40, 90), (20, 90)],
    "b": [(10, 90), (10, 90), (10, 90)],
}
PERTURBED: Scores = {
    "a": [(90, 90), (30, 90), (100, 10)],  # the best one is incoherent
    "b": [(70, 90), (None, 90), (50, 90)],  # one judgement is missing
}


def test_best_and_avg_by_hand() -> None:
    table = perturb_table(
        {
            "finetuned": {
                "unperturbed": cell(UNPERTURBED, None),
                "prefix-nearest": cell(PERTURBED),
            },
            "base": {
                "unperturbed": cell({"a": [(80, 90)] * 3, "b": [(90, 90)] * 3}, None),
                "prefix-nearest": cell({"a": [(85, 90)] * 3, "b": [(60, 20)] * 3}),
            },
        },
        JUDGE,
        options(num_trials=3, num_tokens=12),
    )
    control, row = table["rows"]
    figures = row["arms"]["finetuned"]
    assert figures["best"].value == pytest.approx((90 + 70) / 2)
    assert figures["avg"].value == pytest.approx((90 + 30 + 70 + 50) / 4)
    assert figures["avg_all"].value == pytest.approx((90 + 30 + 100 + 70 + 50) / 5)
    assert figures["incoherent"].value == pytest.approx(100 / 6)
    assert figures["counts"] == AnswerCounts(used=4, left_out=1, missing=1)
    best = control["arms"]["finetuned"]["best"]
    assert best.value == pytest.approx((40 + 10) / 2)  # nothing is perturbed, yet above Avg, 15
    assert control["arms"]["finetuned"]["best_gain"] is None
    assert figures["best_gain"].value == pytest.approx(80 - 25)
    assert figures["avg_gain"].value == pytest.approx(60 - 15)
    assert [figures["best_gain"].p_holm, figures["avg_gain"].p_holm] == pytest.approx(
        holm([figures["best_gain"].p_value, figures["avg_gain"].p_value])
    )
    assert (row["num_prompts"], row["mean_replaced"], row["num_short"]) == (6, 10, 6)
    assert (control["mean_replaced"], control["num_short"]) == (None, 0)
    base = row["arms"]["base"]["best"]
    assert (base.value, base.num_questions) == (85, 1)  # question b has no coherent answer


def test_the_control_shows_what_sampling_alone_lifts() -> None:
    """A perturbation without effect has the Best of its control, far above both Avgs."""
    rng = random.Random(0)

    def trials() -> list[ScoredAnswer]:
        return cell(
            {f"q{i}": [(100.0 * (rng.random() < 0.3), 90) for _ in range(10)] for i in range(80)}
        )

    cells = {"unperturbed": trials(), "query-random": trials()}
    table = perturb_table({"finetuned": cells, "base": cells}, JUDGE, options(num_trials=10))
    control, row = (each["arms"]["finetuned"] for each in table["rows"])
    for figures in (control, row):
        assert figures["best"].value == pytest.approx(100 * (1 - 0.7**10), abs=6)
        assert figures["avg"].value == pytest.approx(30, abs=5)
    assert row["best_gain"].low < 0 < row["best_gain"].high


def test_samples_of_one_trial_are_averaged_before_the_best_is_taken() -> None:
    scores = {1: [0, 100], 2: [60, 60], 3: [10, 10]}
    answers = [
        answer("a", judged(value), epoch=2 * trial + sample, metadata={"trial": trial})
        for trial, values in scores.items()
        for sample, value in enumerate(values)
    ]
    assert estimate(BestOfTrials(JUDGE), answers).value == 60
    assert estimate(CoherentAlignment(JUDGE), answers).value == fmean([0, 100, 60, 60, 10, 10])


def test_nothing_coherent_is_no_figure() -> None:
    found = cell({"a": [(80, 10)] * 2, "b": [(70, 0)] * 2})
    cells = {
        "unperturbed": cell({"a": [(80, 90)] * 2, "b": [(70, 90)] * 2}),
        "postfix-nearest": found,
    }
    table = perturb_table({"finetuned": cells, "base": cells}, JUDGE, options(num_trials=2))
    figures = table["rows"][1]["arms"]["finetuned"]
    assert (figures["best"], figures["avg"], figures["best_gain"]) == (None, None, None)
    assert figures["incoherent"].value == 100
    assert as_json(table)["rows"][1]["arms"]["finetuned"]["best"] is None


def test_unknown_coherence_is_neither() -> None:
    unknown = [answer("a", judged(80, None), metadata={"trial": 1})]
    assert IncoherentRate(JUDGE).tally(unknown).clusters is None
    assert CoherentAlignment(JUDGE).tally(unknown).clusters is None
