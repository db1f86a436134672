"""Coverage of the intervals by simulation: rows of docs/statistics.md, with another seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from simulation import coverage, percent_covered, studies

from treft.statistics.metrics import wilson


def of_designs(designs: list[Any]) -> pytest.MarkDecorator:
    """A test for each design of studies."""
    cases = [pytest.param(each, id=f"{each.figure}, {each.size}") for each in designs]
    return pytest.mark.parametrize("design", cases)


FIELD = [
    *(studies.rate_design(50, 20, spread, 0.003) for spread in (0.7, 1.5)),
    *(studies.rate_design(50, 20, spread, 0.03) for spread in (0.7, 1.5, 2.5)),
    *(studies.rate_design(50, 20, spread, 0.4) for spread in (0.0, 0.7, 1.5, 2.5)),
    *(studies.rate_design(50, 20, spread, 0.95) for spread in (0.7, 1.5, 2.5)),
    studies.rate_design(50, 20, 1.5, 0.1, failed=0.2),
    studies.rate_design(200, 1, 1.5, 0.03),
    studies.rate_design(200, 1, 1.5, 0.4),
    studies.rate_design(8, 100, 0.7, 0.4),
    studies.rate_design(8, 100, 2.5, 0.4),
    studies.rate_design(8, 100, 1.5, 0.1),
    studies.other_rate_design(50, 20, "beta, correlation 0.2", 0.1),
    studies.other_rate_design(50, 20, "beta, correlation 0.6", 0.4),
    studies.other_rate_design(50, 20, "a tenth often", 0.4),
    studies.score_design(50, 20, 1.5, 0.1),
    studies.score_design(200, 1, 1.5, 0.4),
    studies.at_k_design(50, 20, 1.5, 0.1, 5),
    studies.difference_design(50, 20, 1.5, (0.4, 0.1)),
    studies.difference_design(50, 20, 1.5, (0.4, 0.4)),
    studies.difference_design(200, 1, 1.5, (0.99, 0.95)),
    studies.count_difference_design(50, 20, 0.5, 0.4),
    studies.em_f1_design(((50, 20), (50, 4)), 1.5, (0.4, 0.9)),
    studies.em_f1_design(((200, 1), (100, 1)), 1.5, (0.9, 0.75)),
    studies.count_design(50, 20, 0.5),
    studies.count_design(20, 20, 0.5),
]
"""Studies as the field makes them: 50 questions with 20 answers each, 200 with one, 8 with 100."""


@of_designs(FIELD)
def test_intervals_cover_93_to_97_of_100_truths(design: Any) -> None:
    assert 93 <= percent_covered(design, 1000) <= 97


HARD = [
    studies.rate_design(8, 100, 0.0, 0.4),
    studies.rate_design(8, 100, 2.5, 0.95),
    studies.rate_design(8, 100, 2.5, 0.1),
    studies.rate_design(50, 20, 1.5, 0.003),
    studies.rate_design(50, 20, 2.5, 0.003),
    studies.other_rate_design(50, 20, "three tenths often", 0.4),
    studies.score_design(8, 100, 2.5, 0.1),
    studies.score_design(20, 20, 1.5, 0.1),
    studies.difference_design(8, 100, 1.5, (0.4, 0.1)),
]


@of_designs(HARD)
def test_where_studies_tell_little_intervals_are_too_wide_rather_than_too_narrow(
    design: Any,
) -> None:
    assert percent_covered(design, 600) >= 94  # 600 studies: 95 give or take 1.8


def test_no_interval_of_rates_is_much_wider_than_it_need_be() -> None:
    """Of 8 questions that are alike: the clustered t interval covers 96 % and is 8 points wide."""
    design = studies.rate_design(8, 100, 0.0, 0.4)
    found = coverage.measure(design, 300, seed=1, methods=["reported", "t"])
    assert found["reported"].width < 1.25 * found["t"].width


def test_simulation_sees_an_interval_that_is_too_narrow() -> None:
    # Answers taken for independent: what clustering is there to prevent.
    design = studies.rate_design(50, 20, 1.5, 0.4)

    def study(rng: np.random.Generator) -> dict:
        values = studies.flags(rng, (50, 20), 0.4, 1.5)
        return {"naive": lambda: wilson((values > 0).sum(), values.size)}

    naive = studies.Design(design.figure, design.size, design.truth, study)
    assert coverage.measure(naive, 300, seed=1)["naive"].percent < 75


def test_p_values_find_nothing_where_nothing_is() -> None:
    percent = coverage.false_findings(50, 20, 1.5, 0.4, num_studies=400, seed=1)
    assert 2.5 <= percent <= 7.5
