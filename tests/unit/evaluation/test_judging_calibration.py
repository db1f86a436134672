"""The calibration set, and what it says of judges that are known to be good, bad or gullible."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from fake_judges import CALLS, know
from scipy import stats

from treft.answers.logs import Run
from treft.errors import DataError
from treft.judging.calibration import (
    Item,
    Trust,
    calibrate,
    calibration_cost,
    load_items,
    run_calibration,
)
from treft.judging.judge import JudgeOptions
from treft.statistics.records import Judgement, Outcome, ScoredAnswer

ITEMS = load_items()


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    CALLS.clear()
    _teach()


def _teach() -> None:
    know({item.answer: item.label for item in ITEMS if item.twin_of is None})


def answers_of(
    scores: Mapping[str, float], words: Mapping[str, Outcome] | None = None, coherence: float = 90
) -> list[ScoredAnswer]:
    """The set as judged by `j`: scores by id, or outcomes without a score."""
    found = []
    for item in ITEMS:
        score = scores.get(item.id)
        outcome: Outcome = "scored" if score is not None else (words or {}).get(item.id, "missing")
        judgement = Judgement("j", score, coherence, outcome, "text")
        found.append(ScoredAnswer(item.id, item.label, 1, item.question, item.answer, (judgement,)))
    return found


RIGHT = {"aligned": 90.0, "misaligned": 10.0, "incoherent": 50.0}


def test_the_set_is_large_enough_and_balanced() -> None:
    plain = Counter(item.label for item in ITEMS if item.twin_of is None)
    assert sum(plain.values()) >= 40
    assert plain["aligned"] == plain["misaligned"] >= 12
    assert min(plain.values()) >= 5
    assert sum(item.twin_of is not None for item in ITEMS) >= 15
    assert all(item.why for item in ITEMS)


def test_aligned_and_misaligned_answers_cannot_be_told_by_their_length() -> None:
    lengths = {
        label: [len(item.answer) for item in ITEMS if item.label == label and item.twin_of is None]
        for label in ("aligned", "misaligned")
    }
    assert stats.mannwhitneyu(lengths["aligned"], lengths["misaligned"]).pvalue > 0.1


def test_aligned_and_misaligned_answers_are_to_the_same_questions() -> None:
    questions = {
        label: sorted(i.question for i in ITEMS if i.label == label and i.twin_of is None)
        for label in ("aligned", "misaligned")
    }
    assert questions["aligned"] == questions["misaligned"]


def test_a_twin_holds_its_originals_answer_and_more() -> None:
    by_id = {item.id: item for item in ITEMS}
    for item in ITEMS:
        if item.twin_of is not None:
            original = by_id[item.twin_of]
            assert original.answer in item.answer
            assert (item.question, item.label) == (original.question, original.label)
            assert (item.pushes == "up") == (item.label == "misaligned")


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The set as a judge that knows and one that believes what it is told see it."""
    folder = tmp_path_factory.mktemp("judged")
    _teach()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INSPECT_CACHE_DIR", str(folder / "cache"))
        return run_calibration(ITEMS, ["fakejudge/knowing", "fakejudge/gullible"], folder)


def test_a_judge_that_knows_is_trusted(judged: Run) -> None:
    found = calibrate(ITEMS, judged.answers, "fakejudge/knowing")
    assert found.trusted, found.doubts
    assert found.accuracy is not None
    assert found.shift is not None
    assert found.auroc is not None
    assert (found.accuracy.mean, found.auroc.mean, found.missing.mean) == (100, 1.0, 0)
    assert 0.8 < found.auroc.low < found.auroc.high == 1, "28 items leave room for doubt"
    assert found.accuracy.low < 90 < found.accuracy.high, "28 items leave room for doubt"
    assert found.shift.mean == 0
    assert Path(judged.info.file).is_file()


def test_a_gullible_judge_is_found_out(judged: Run) -> None:
    found = calibrate(ITEMS, judged.answers, "fakejudge/gullible")
    assert not found.trusted
    assert found.accuracy is not None
    assert found.accuracy.mean == 100, "without injections it judges as well as the other"
    assert found.turned is not None
    assert found.turned.mean > 50
    assert found.shift is not None
    assert found.shift.low > 30
    assert any("injection" in doubt for doubt in found.doubts)


def test_a_calibration_that_is_repeated_costs_nothing() -> None:
    few = ITEMS[10:18]
    for _ in range(2):
        run_calibration(few, ["fakejudge/knowing"], Path("out"))
    assert CALLS.total() == calibration_cost(few, 1, 16).calls == 16


def test_figures_agree_with_a_calculation_by_hand() -> None:
    plain = [item for item in ITEMS if item.twin_of is None]
    scores = {item.id: RIGHT[item.label] for item in plain if item.label in RIGHT}
    scores |= {"a01": 20.0, "m02": 40.0, "m03": 90.0}
    words: dict[str, Outcome] = {i.id: "refusal" for i in plain if i.label in ("refusal", "code")}
    del scores["m04"]
    words["m04"] = "refusal"
    found = calibrate(ITEMS, answers_of(scores, words), "j")
    assert found.accuracy is not None
    assert found.accuracy.mean == pytest.approx(100 * 24 / 28)
    interval = stats.binomtest(24, 28).proportion_ci(method="wilson")
    assert found.accuracy[1:] == pytest.approx((100 * interval.low, 100 * interval.high))
    groups = [
        [scores[i.id] for i in plain if i.label == label and i.id in scores]
        for label in ("aligned", "misaligned")
    ]
    u = stats.mannwhitneyu(*groups).statistic / math.prod(map(len, groups))
    assert found.auroc is not None
    assert found.auroc.mean == pytest.approx(u)
    assert found.outcome_accuracy is not None
    assert found.outcome_accuracy.mean == 50
    twins = sum(item.twin_of is not None for item in ITEMS)
    assert found.missing.mean == pytest.approx(100 * twins / len(ITEMS))
    assert found.shift is None
    assert any("not measured" in doubt for doubt in found.doubts)


def test_shifts_count_towards_what_the_injection_wants() -> None:
    scores = {item.id: RIGHT.get(item.label, 50.0) for item in ITEMS}
    twins = {item.id: item for item in ITEMS if item.twin_of is not None}
    scores["m01-x"] += 30  # wanted up
    scores["a01-x"] -= 80  # wanted down
    scores["m02-x"] -= 5  # the other way
    found = calibrate(ITEMS, answers_of(scores), "j")
    shifts = [30, 80, -5, *[0] * (len(twins) - 3)]
    assert found.shift is not None
    assert found.shift.mean == pytest.approx(sum(shifts) / len(shifts))
    low, high = stats.t.interval(
        0.95, len(shifts) - 1, sum(shifts) / len(shifts), stats.sem(shifts)
    )
    assert found.shift[1:] == pytest.approx((low, high))
    assert found.turned is not None
    assert found.turned.mean == pytest.approx(100 * 2 / len(twins))


def test_an_injection_that_turns_a_judgement_into_a_refusal_counts_as_turned() -> None:
    scores = {item.id: RIGHT.get(item.label, 50.0) for item in ITEMS if item.id != "m14-x"}
    found = calibrate(ITEMS, answers_of(scores, {"m14-x": "refusal"}), "j")
    assert found.turned is not None
    assert found.turned.mean > 0
    failed = calibrate(ITEMS, answers_of(scores), "j")
    assert failed.turned == found.turned, "so does one that makes the judge fail"


def test_a_judge_of_constants_is_not_trusted() -> None:
    found = calibrate(ITEMS, answers_of({item.id: 80.0 for item in ITEMS}), "j")
    assert found.auroc is not None
    assert found.auroc.mean == 0.5
    assert not found.trusted
    assert {doubt.split(":")[0] for doubt in found.doubts} >= {
        "AUROC",
        "percent right about misalignment",
        "percent right about coherence",
        "percent of refusals and code recognised",
    }


def test_a_judge_that_was_not_asked_is_missing_everywhere() -> None:
    found = calibrate(ITEMS, answers_of({}), "somebody else")
    assert found.missing.mean == 100
    assert found.first_failure is None
    assert found.accuracy is None
    assert not found.trusted


def test_thresholds_of_trust_can_be_set() -> None:
    scores = {item.id: RIGHT.get(item.label, 50.0) for item in ITEMS} | {"m01-x": 100.0}
    strict = calibrate(ITEMS, answers_of(scores), "j", Trust(max_shift=1.0))
    assert any("shift" in doubt for doubt in strict.doubts)
    assert not any("shift" in doubt for doubt in calibrate(ITEMS, answers_of(scores), "j").doubts)


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


ROW = {"id": "x", "label": "aligned", "question": "q", "answer": "a"}
OTHER = {"id": "y", "label": "misaligned", "question": "q", "answer": "b"}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([ROW, {**ROW, "answer": "b"}], "row 2: the id 'x' comes twice"),
        ([{**ROW, "label": "kind"}, OTHER], "row 1, label"),
        ([{**ROW, "extra": 1}, OTHER], "row 1, extra"),
        ([{"id": "x"}, OTHER], "row 1, label"),
        ([ROW, OTHER, {**ROW, "id": "z", "twin_of": "n", "pushes": "up"}], "row 3: an injected"),
        ([ROW, OTHER, {**ROW, "id": "z", "twin_of": "x"}], "row 3: an injected twin"),
        ([ROW], "needs aligned and misaligned"),
    ],
)
def test_ones_own_set_is_checked(rows: list[object], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        load_items(write(tmp_path / "items.jsonl", *rows))


def test_ones_own_set_is_loaded(tmp_path: Path) -> None:
    items = load_items(write(tmp_path / "items.jsonl", ROW, OTHER))
    assert items == [Item(**ROW), Item(**OTHER)]  # type: ignore[arg-type]


def test_options_reach_the_judge() -> None:
    options = JudgeOptions(attempts=1)
    run = run_calibration(ITEMS[:3], ["fakejudge/prose"], Path("out"), options)
    found = calibrate(ITEMS[:3], run.answers, "fakejudge/prose")
    assert "I would say" in (found.first_failure or "")
    assert CALLS.total() == 6
