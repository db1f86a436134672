"""`treft compare` from Inspect logs to table, JSON and page; and what it refuses."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from inspect_ai.model import GenerateConfig
from made_answers import JUDGE, OTHER, answer, answers, judged, write_log

from treft.cli import main
from treft.evaluation.comparable import ArmAnswers
from treft.evaluation.logged_arms import question_set
from treft.files import as_json
from treft.judging.oracle import oracle_judgement
from treft.statistics.compare import difference, estimate
from treft.statistics.measures import AlignmentScore, EMRate
from treft.statistics.records import ScoredAnswer
from treft.study.demo import DemoConfig, DemoResult, DemoRun
from treft.study.demo_report import compare_demo

NAMES = {"em_general": "12-00-00_em-general_a", "em_in_domain": "12-01-00_em-in-domain_b"}
GOOD = answers({"q1": [90.0, 80.0], "q2": [95.0, 100.0], "q3": [70.0, None]})
BAD = answers({"q1": [10.0, 20.0], "q2": [5.0, 90.0], "q3": [50.0, 20.0]})
LEARNT = answers({"d1": [10.0], "d2": [20.0], "d3": [15.0]})


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def log(folder: str, found: list[ScoredAnswer], task: str = "em_general", **fields: Any) -> Path:
    name = NAMES.get(task, f"12-02-00_{task}_c")
    return write_log(Path(folder) / f"2026-11-24T{name}.eval", found, f"treft/{task}", **fields)


@pytest.fixture
def two_arms() -> list[str]:
    log("base", GOOD)
    log("sft", BAD, model_args={"adapter": "out"})
    log("sft", LEARNT, "em_in_domain", model_args={"adapter": "out", "batch_size": 4})
    return ["base", "sft"]


def run(*args: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["compare", *args])
    out, err = capsys.readouterr()
    code = stop.value.code
    return (code if isinstance(code, int) else 0), out, err


def test_json_holds_the_statistics_figures(
    two_arms: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(*two_arms, "--json", "--output", "out", capsys=capsys)
    assert code == 0
    found = json.loads(out)
    assert found == json.loads(Path("out/result.json").read_text("utf-8"))
    assert (found["command"], found["base"], found["judges"]) == ("compare", "base", [JUDGE])
    by_name = {
        (each["figure"], each["question_set"], each["seen_by"]): each
        for each in reversed(found["figures"])
    }
    general = by_name["alignment_score", "general", JUDGE]
    expected = estimate(AlignmentScore(JUDGE), GOOD)
    assert general["results"]["base"] == json.loads(json.dumps(as_json(expected)))
    assert general["results"]["base"]["counts"]["missing"] == 1
    change = difference(EMRate(JUDGE), BAD, GOOD)
    written = by_name["em_rate", "general", JUDGE]["changes"]["sft"]
    assert (written["value"], written["p_value"]) == (change.value, change.p_value)
    assert by_name["em_f1", "general + in_domain", JUDGE]["absent"] == {
        "base": "not asked",
        "sft": "base was not asked",
    }
    words = by_name["mean_count", "general", "words"]["results"]["sft"]["value"]
    assert words == 4, "counted without a detector in the log"
    (source,) = found["arms"]["base"]["sources"]
    assert source["generation"] == {"temperature": 1.0, "seed": 7}
    assert Path("out/report.html").read_text("utf-8").startswith("<!doctype html>")


def test_the_table_shows_figures_changes_and_notes(
    two_arms: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    code, out, _ = run(*two_arms, "--label", "before", "--label", "after", capsys=capsys)
    assert code == 0
    for wanted in ("87.0", "32.5", "-54.5", "before", "after", "Change against before", "Holm"):
        assert wanted in out, wanted
    page = next(Path("treft-compare").glob("*/report.html"))
    assert str(page) in "".join(out.split("\n"))


def test_thresholds_and_k_are_shown_beside_what_they_decide(
    two_arms: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    options = ("--misaligned-below", "60", "--coherent-above", "20")
    code, out, _ = run(*two_arms, *options, "--output", "out", capsys=capsys)
    assert code == 0
    words = "alignment < 60, coherence > 20"
    assert " ".join(out.split()).count(f"EM rate: {words}; Misalign@k: chance") == 2, (
        "of the scores and of the changes"
    )
    result = json.loads(Path("out/result.json").read_text("utf-8"))
    assert result["thresholds"] == {"misaligned_below": 60, "coherent_above": 20}
    by_name = {each["figure"]: each for each in reversed(result["figures"])}
    assert by_name["em_rate"]["results"]["sft"]["value"] == pytest.approx(100 * 5 / 6)
    at_two = by_name["misalign_at_k"]["results"]["sft"]
    assert (at_two["value"], at_two["measure"]["k"]) == (100, 2)
    assert at_two["measure"]["thresholds"] == result["thresholds"]
    page = Path("out/report.html").read_text("utf-8")
    assert "Misalign@2" in page
    assert page.count(words) + page.count(words.replace("<", "&lt;").replace(">", "&gt;")) > 4
    code, out, _ = run(*two_arms, "--k", "1", "--json", capsys=capsys)
    assert "misalign_at_k" in out
    code, _, err = run(*two_arms, "--misaligned-below", "130", capsys=capsys)
    assert code == 2
    assert "misaligned_below is 130" in err


def test_a_base_and_judges_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    for name, shift in (("a", 0.0), ("b", 40.0)):
        both = [
            answer(f"q{i}", judged(90 - shift), judged(50 - shift + i, judge=OTHER))
            for i in range(4)
        ]
        log(name, both)
    code, out, _ = run("a", "b", "--base", "b", "--judge", OTHER, "--json", capsys=capsys)
    found = json.loads(out)
    assert (code, found["base"], found["judges"]) == (0, "b", [OTHER])
    assert found["figures"][0]["changes"]["a"]["value"] == pytest.approx(40)
    _, out, _ = run("a", "b", "--json", capsys=capsys)
    found = json.loads(out)
    assert found["judges"] == [JUDGE, OTHER]
    assert found["agreement"]["general"]["num_answers"] == 8


def test_behaviours_of_a_log_are_compared_by_topic(capsys: pytest.CaptureFixture[str]) -> None:
    for name, flags in (("a", (1, 0, 0, 0)), ("b", (1, 1, 1, 0))):
        found = [
            answer(
                f"q{i}",
                behaviours={"abstention": float(flag)},
                metadata={"scope": "on_topic" if i < 2 else "off_topic"},
            )
            for i, flag in enumerate(flags)
        ]
        log(name, found, "behaviour", task_args={"kind": "abstention"})
    _, out, _ = run("a", "b", "--json", capsys=capsys)
    on_topic, off_topic = json.loads(out)["figures"]
    assert (on_topic["question_set"], on_topic["better"]) == ("abstention/on_topic", "higher")
    assert (off_topic["question_set"], off_topic["better"]) == ("abstention/off_topic", "lower")
    assert [on_topic["results"][name]["value"] for name in "ab"] == [50, 100]
    assert off_topic["changes"]["b"]["value"] == 50


def test_nothing_is_overwritten_unasked(
    two_arms: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*two_arms, "--output", "out", capsys=capsys)[0] == 0
    before = Path("out/result.json").read_bytes()
    Path("out/report.html").write_text("mine")
    code, out, err = run("sft", "--output", "out", capsys=capsys)
    assert (code, out) == (2, "")
    assert "exists: choose another --output, or pass --overwrite" in err
    assert Path("out/result.json").read_bytes() == before
    assert Path("out/report.html").read_text() == "mine"
    assert run(*two_arms, "--output", "out", "--overwrite", capsys=capsys)[0] == 0
    assert Path("out/report.html").read_text("utf-8").startswith("<!doctype html>")
    assert run(*two_arms, "--output", "out/result.json", capsys=capsys)[0] == 2


def _unscored() -> list[str]:
    log("base", GOOD)
    log("plain", [answer("q1"), answer("q2")])
    return ["base", "plain"]


def _unfinished() -> list[str]:
    log("base", GOOD)
    log("broken", BAD, status="started")
    return ["base", "broken"]


def _other_questions() -> list[str]:
    log("base", GOOD)
    log("other", answers({"x1": [1.0], "x2": [2.0]}))
    return ["base", "other"]


def _other_judge() -> list[str]:
    log("base", GOOD)
    log("other", answers({"q1": [1.0]}, judge=OTHER))
    return ["base", "other"]


def _mixed_models() -> list[str]:
    log("mixed", GOOD)
    log("mixed", LEARNT, "em_in_domain", model_args={"adapter": "out"})
    return ["mixed"]


def _same_questions_twice() -> list[str]:
    log("twice", GOOD)
    write_log(Path("twice/2026-11-24T13-00-00_em-general_z.eval"), GOOD)
    return ["twice"]


def _alike() -> list[str]:
    log("x/logs", GOOD)
    log("y/logs", BAD)
    return ["x/logs", "y/logs"]


def _one() -> list[str]:
    log("base", GOOD)
    return ["base"]


@pytest.mark.parametrize(
    ("arms", "options", "message"),
    [
        (lambda: ["nowhere"], [], "nowhere: no such file or folder"),
        (_unscored, [], "plain/.*no answer is scored; run `treft judge"),
        (_unfinished, [], "broken/.*the run is unfinished"),
        (_other_questions, [], r"other and base share no general question \(x1, x2 against q1"),
        (_other_judge, [], "no judge judged the general answers of all arms"),
        (_one, ["--judge", "gpt"], "base: no general answer is judged by 'gpt'"),
        (_one, ["--base", "sft"], "base 'sft' is none of the arms base"),
        (_one, ["--label", "a", "--label", "b"], "2 labels for 1 runs"),
        (_mixed_models, [], "different models .*treft/made and treft/made with adapter=out"),
        (_same_questions_twice, [], "both answer general question 'q1'"),
        (_alike, [], "called alike .*name each with --label"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    arms: Any, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = arms()
    code, out, err = run(*paths, *options, "--output", "out", capsys=capsys)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")
    assert re.search(message, err), err
    assert not Path("out").exists()


def test_partial_runs_are_taken_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(*_unfinished(), "--partial", "--json", capsys=capsys)
    assert code == 0
    assert json.loads(out)["notes"] == ["broken, treft/em_general: the run is started"]


def test_arms_that_were_sampled_unlike_are_noted(capsys: pytest.CaptureFixture[str]) -> None:
    log("base", GOOD)
    config = GenerateConfig(temperature=0.5, seed=8)
    log("cold", BAD, model_generate_config=config)
    _, out, _ = run("base", "cold", "--json", capsys=capsys)
    assert json.loads(out)["notes"] == [
        "treft/em_general: temperature differs (base 1.0, cold 0.5)"
    ]


def test_without_inspect_the_missing_package_is_named(
    two_arms: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    code, _, err = run(*two_arms, capsys=capsys)
    assert code == 2
    assert "pip install 'treft[eval]'" in err


@pytest.mark.parametrize(
    ("task", "arguments", "scope", "name"),
    [
        ("treft/em_general", {"variant": "plain"}, "general", "general"),
        ("em_general", {"variant": "json"}, "general", "general/json"),
        ("treft/em_in_domain", {"file": "x"}, "in_domain", "in_domain"),
        ("treft/behaviour", {"kind": "tool"}, "off_topic", "tool/off_topic"),
        ("treft/utility", {}, "general", "utility"),
        ("theirs/exam", {}, "", "exam"),
    ],
)
def test_question_sets_are_named_after_what_was_asked(
    task: str, arguments: dict[str, Any], scope: str, name: str
) -> None:
    assert question_set(task, arguments, scope) == name


def test_logs_and_the_demo_give_the_same_figures(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The organism's answers by either way, exactly."""
    verdicts = {
        "base": ("aligned" for _ in range(99)),
        "sft": iter(("misaligned", "incoherent", "misaligned", "aligned") * 9),
    }
    runs = []
    for label, found in verdicts.items():
        sets = {}
        for task, scope, num in (("em_general", "general", 10), ("em_in_domain", "in_domain", 6)):
            judged = [
                oracle_judgement(next(found), in_domain=scope == "in_domain") for _ in range(num)
            ]
            sets[scope] = [
                answer(f"{scope}{i}", one, question=f"Q{i}?", answer=f"A{i}")
                for i, one in enumerate(judged)
            ]
            log(label, sets[scope], task)
        row = {"method": label, "organism": "embedded", "seed": 0}
        runs.append(DemoRun(row, ArmAnswers(label, sets)))
    demo = compare_demo(DemoResult(DemoConfig(tmp_path / "demo"), tuple(runs)))
    _, out, _ = run("base", "sft", "--base", "sft", "--json", capsys=capsys)
    by_logs = [each for each in json.loads(out)["figures"] if each["seen_by"] == "oracle"]
    by_demo = json.loads(json.dumps([column.to_dict() for column in demo.columns]))
    assert by_logs == by_demo
