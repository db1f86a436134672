"""Coverage of intervals that are not of a rate, by simulation; see docs/statistics.md."""

from __future__ import annotations

from typing import Any

from simulation import coverage, of_designs, percent_covered, studies

FIELD = [
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
    studies.score_design(8, 100, 2.5, 0.1),
    studies.score_design(20, 20, 1.5, 0.1),
    studies.difference_design(8, 100, 1.5, (0.4, 0.1)),
]


@of_designs(HARD)
def test_where_studies_tell_little_intervals_are_too_wide_rather_than_too_narrow(
    design: Any,
) -> None:
    assert percent_covered(design, 600) >= 93.5  # 600 studies: 95 give or take 1.8


def test_p_values_find_nothing_where_nothing_is() -> None:
    percent = coverage.false_findings(50, 20, 1.5, 0.4, num_studies=400, seed=1)
    assert 2.5 <= percent <= 7.5
