"""The made study `right`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from made_studies import plot, rows, steps_of
from treft.steps.step import Step
from treft.study.claims import Claim
from treft.study.protocol import Row, Study, StudyConfig


def steps(config: StudyConfig) -> list[Step[Any]]:
    return steps_of("right", config)


def table(runs: Sequence[Row]) -> list[Row]:
    return rows(runs, 20.0)


def verdict(rows: Sequence[Row]) -> str:
    return f"Held here: right is {rows[0]['value']:.1f}."


CLAIM = Claim("Table 12", "The claim of right.", {}, "a large model")
STUDIES = (Study("right", CLAIM, "no time", steps, table, verdict, plot),)
