"""The coverage benchmark runs: a few studies of each kind, and an interval that is too narrow."""

from __future__ import annotations

from typing import Any

import interval_coverage as coverage
import numpy as np
import pytest
import simulated_studies as studies

from treft.statistics.intervals import wilson

DESIGNS = [
    studies.rate_design(20, 5, 1.5, 0.4),
    studies.score_design(20, 5, 1.5, 0.4),
    studies.count_design(20, 5, 0.5),
    studies.at_k_design(20, 5, 1.5, 0.4, 2),
    studies.difference_design(20, 5, 1.5, (0.4, 0.1)),
    studies.count_difference_design(20, 5, 0.5, 0.4),
    studies.em_f1_design(((20, 5), (20, 2)), 1.5, (0.4, 0.9)),
]


@pytest.mark.parametrize("design", DESIGNS, ids=lambda design: design.figure)
def test_most_intervals_contain_the_truth(design: Any) -> None:
    found = coverage.measure(design, 60, seed=1, methods=["reported"])["reported"]
    assert found.num_none == 0
    assert found.percent >= 85, "60 studies: 95 give or take 6"


def test_simulation_sees_an_interval_that_is_too_narrow() -> None:
    # Answers taken for independent: what clustering is there to prevent.
    design = studies.rate_design(50, 20, 1.5, 0.4)

    def study(rng: np.random.Generator) -> dict:
        values = studies.flags(rng, (50, 20), 0.4, 1.5)
        return {"naive": lambda: wilson((values > 0).sum(), values.size)}

    naive = studies.Design(design.figure, design.size, design.truth, study)
    assert coverage.measure(naive, 300, seed=1)["naive"].percent < 75


def test_p_values_find_nothing_where_nothing_is() -> None:
    percent = coverage.false_findings(10, 5, 1.5, 0.4, num_studies=100, seed=1)
    assert percent <= 12, "100 studies: 5 give or take 4"
