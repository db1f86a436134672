"""The made study `unrun`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from made_studies import plot, rows, steps_of
from treft.steps.step import Step
from treft.study.claims import Claim
from treft.study.protocol import Row, Study, StudyConfig


def steps(config: StudyConfig) -> list[Step[Any]]:
    return steps_of("unrun", config)


def table(runs: Sequence[Row]) -> list[Row]:
    return rows(runs, None)


def verdict(rows: Sequence[Row]) -> str:
    return f"Held here: unrun is {rows[0]['value']:.1f}."


CLAIM = Claim("Table 2", "The claim of unrun.", {}, "a large model")
STUDIES = (Study("unrun", CLAIM, "no time", steps, table, verdict, plot),)
