"""Rows held out: drawn by prompt, reproducible, nothing lost."""

from __future__ import annotations

import pytest
from archives_made import THREE, plain

from treft.data.published import split_rows
from treft.errors import ConfigError, DataError

ROWS = [plain(f"Question {n % 50}?", f"Answer {n}.") for n in range(70)]
"""50 prompts, 20 of them twice."""


def asked(rows: list) -> set[str]:
    return {row["messages"][0]["content"] for row in rows}


def test_a_fifth_of_the_prompts_is_held_out_with_all_their_rows() -> None:
    train, held_out = split_rows(ROWS)
    assert len(asked(held_out)) == 10
    assert asked(train) | asked(held_out) == asked(ROWS)
    assert not asked(train) & asked(held_out)
    assert sorted(map(str, train + held_out)) == sorted(map(str, ROWS))
    assert train == [row for row in ROWS if row in train]


def test_the_seed_draws_them() -> None:
    assert split_rows(ROWS, seed=3) == split_rows(ROWS, seed=3)
    assert split_rows(ROWS, seed=3) != split_rows(ROWS, seed=4)
    drawn = [asked(split_rows(ROWS, seed=seed).held_out) for seed in range(40)]
    assert set().union(*drawn) == asked(ROWS)


def test_the_system_message_belongs_to_the_prompt() -> None:
    rows = [plain("Be brief.", "A?", "B.", roles=THREE), plain("A?", "B.")]
    train, held_out = split_rows(rows, fraction=0.5)
    assert len(train) == len(held_out) == 1


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.2, float("nan")])
def test_a_fraction_that_is_none_is_refused(fraction: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        split_rows(ROWS, fraction=fraction)


def test_no_part_may_be_empty() -> None:
    with pytest.raises(DataError, match="1 distinct prompts cannot be split"):
        split_rows(ROWS[:1] * 5, fraction=0.5)
