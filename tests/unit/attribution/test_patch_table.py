"""Shares and gains of a sweep, against sums by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made_answers import JUDGE, answers

from treft.attribution.evidence import score_evidence
from treft.attribution.forcing import OwnStates
from treft.attribution.grid import Cell
from treft.attribution.grid_run import Answered
from treft.attribution.patches import Patch
from treft.attribution.tables import patch_table, patches_in_words
from treft.files import as_json
from treft.statistics.intervals import Interval

NUM = 40
RNG = np.random.default_rng(0)
IDS = [f"q{number}" for number in range(NUM)]
BASE = {id: [95.0, 90.0] for id in IDS}
TUNED = {id: [float(x) for x in RNG.uniform(0, 40, 2)] for id in IDS}
HALF = {id: [(TUNED[id][0] + 95) / 2, (TUNED[id][1] + 90) / 2] for id in IDS}
PATCHES = [
    Patch("prefix", ("prefix",), num_tokens=23.0),
    Patch("query, 3 tokens", ("query",), num_positions=3, is_control=True, num_tokens=3.0),
]
CELLS = [
    Cell("base", "base"),
    Cell("finetuned", "finetuned"),
    *(Cell(patch.name, "finetuned", patch) for patch in PATCHES),
]
OWN = OwnStates(NUM, 0.0, 1e-5, 0)


def share_regained(patched: Any, finetuned: Any, base: Any) -> Interval | None:
    """The share that one patch regains in one judge's eyes."""
    return score_evidence(JUDGE, base, finetuned, {"patch": patched}).share("patch")


def answered(**changed: object) -> Answered:
    scored = {
        "finetuned": answers(TUNED),
        "prefix": answers(HALF),
        "query, 3 tokens": answers(TUNED, coherence=10.0),
    }
    scored |= changed  # type: ignore[arg-type]
    return Answered({"base": {"base": answers(BASE)}, "finetuned": scored}, OWN)


def test_a_share_is_the_ratio_of_mean_gain_and_mean_loss() -> None:
    found = share_regained(answers(HALF), answers(TUNED), answers(BASE))
    assert found is not None
    assert found.mean == pytest.approx(0.5)
    assert found.low == pytest.approx(0.5)
    assert found.high == pytest.approx(0.5)
    mixed = {id: BASE[id] if number % 4 == 0 else TUNED[id] for number, id in enumerate(IDS)}
    found = share_regained(answers(mixed), answers(TUNED), answers(BASE))
    assert found is not None
    lost = [np.mean(BASE[id]) - np.mean(TUNED[id]) for id in IDS]
    assert found.mean == pytest.approx(sum(lost[::4]) / sum(lost))
    assert 0.1 < found.low < found.mean < found.high < 0.45


def test_without_a_sure_loss_there_is_no_share() -> None:
    assert share_regained(answers(BASE), answers(BASE), answers(BASE)) is None
    assert share_regained(answers(BASE), answers(BASE), answers(TUNED)) is None


def test_the_table_has_gains_shares_and_incoherent_answers_apart() -> None:
    table = patch_table(answered(), CELLS, JUDGE)
    names = ["base", "finetuned", "prefix", "query, 3 tokens"]
    assert [row["name"] for row in table["rows"]] == names
    base, tuned, prefix, query = table["rows"]
    assert (base["gain"], tuned["gain"], base["share"]) == (None, None, None)
    means = {name: np.mean([*each.values()]) for name, each in (("t", TUNED), ("h", HALF))}
    assert prefix["gain"].value == pytest.approx(means["h"] - means["t"])
    assert prefix["gain"].low > 0
    assert prefix["gain"].p_holm < 0.01
    assert query["gain"].value == 0
    assert [row["is_control"] for row in as_json(table)["rows"]] == [False, False, False, True]
    assert query["incoherent"].value == 100
    assert tuned["incoherent"].value == 0
    assert table["loss"].value == pytest.approx(means["t"] - 92.5)
    json.dumps(as_json(table))


def test_words_say_what_the_table_says() -> None:
    table = patch_table(answered(), CELLS, JUDGE)
    shown = patches_in_words(table)
    line = [cell.text for cell in shown.rows[3]]
    assert line[0] == "query, 3 tokens (control)"
    assert line[2] == "3.0"
    assert shown.rows[2][5].text == "50 [50, 50]"
    assert not any("nothing that a patch could regain" in note for note in shown.notes)
    same = patch_table(answered(finetuned=answers(BASE)), CELLS, JUDGE)
    assert any("nothing that a patch could regain" in note for note in patches_in_words(same).notes)
    lacking = [replace(one, judgements=()) for one in answers(HALF)[:3]]
    lost = patch_table(answered(prefix=[*answers(HALF)[3:], *lacking]), CELLS, JUDGE)
    assert any(
        "prefix: answers without a score: missing 3." in note
        for note in patches_in_words(lost).notes
    )
