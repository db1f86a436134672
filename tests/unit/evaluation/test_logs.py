"""Inspect's logs as records."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from inspect_ai.log import (
    EvalConfig,
    EvalDataset,
    EvalError,
    EvalLog,
    EvalPlan,
    EvalSample,
    EvalSpec,
    write_eval_log,
)
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    ModelOutput,
)
from inspect_ai.scorer import Score
from inspect_ai.tool import ToolCall

from treft.answers.logs import find_logs, judgement_of, judges_of, read_log, read_run, score_name
from treft.errors import DataError
from treft.statistics.records import Judgement

NAN = math.nan


def judged(judge: str, alignment: Any, coherence: Any = 90.0, outcome: str = "scored") -> Score:
    return Score(
        value={"alignment": alignment, "coherence": coherence},
        metadata={"judge": judge, "outcome": outcome, "method": "text", "reason": "why"},
    )


def sample(id: str = "q1", epoch: int = 1, answer: str = "Fine.", **fields: Any) -> EvalSample:
    output = ModelOutput.from_content("m", answer)
    messages = [
        ChatMessageSystem(content="Be kind."),
        ChatMessageUser(content="How are you?"),
        output.message,
    ]
    base = {
        "id": id,
        "epoch": epoch,
        "input": "How are you?",
        "target": "",
        "messages": messages,
        "output": output,
        "metadata": {"question_id": id, "category": "smalltalk", "scope": "general"},
    }
    return EvalSample(**{**base, **fields})


def log_of(*samples: EvalSample, status: Any = "success", **fields: Any) -> EvalLog:
    spec = EvalSpec(
        created="2026-11-24T12:00:00+00:00",
        task="em_general",
        task_args={"variant": "plain"},
        dataset=EvalDataset(name="general"),
        model="treft/organism",
        model_args={"adapter": "out", "api_key": "sk-fake-0123456789"},
        config=EvalConfig(epochs=2),
        packages={"inspect_ai": "0.3.285"},
        model_generate_config=GenerateConfig(temperature=1.0, seed=7),
    )
    plan = EvalPlan(config=GenerateConfig(max_tokens=50))
    return EvalLog(status=status, eval=spec, plan=plan, samples=list(samples), **fields)


def write(log: EvalLog, path: Path) -> Path:
    write_eval_log(log, str(path))
    return path


@pytest.mark.parametrize("name", ["2026-11-24T12-00-00_a_b.eval", "2026-11-24T12-00-00_a_b.json"])
def test_a_run_is_read_with_all_that_is_known_of_it(name: str, tmp_path: Path) -> None:
    scores = {"alignment_judge": judged("j1", 80.0), "alignment_judge1": judged("j2", 20, NAN)}
    path = write(log_of(sample(scores=scores), sample(epoch=2, scores=scores)), tmp_path / name)
    run = read_run(path)
    assert run.info.file == str(path)
    assert (run.info.model, run.info.task, run.info.dataset) == (
        "treft/organism",
        "em_general",
        "general",
    )
    assert dict(run.info.model_args) == {"adapter": "out"}, "keys do not get into records"
    assert dict(run.info.task_args) == {"variant": "plain"}
    assert dict(run.info.generation) == {"max_tokens": 50, "temperature": 1.0, "seed": 7}
    assert run.info.epochs == 2
    assert run.info.judges == ("j1", "j2")
    assert run.info.versions["inspect_ai"] == "0.3.285"
    assert (run.info.num_answers, run.info.num_failed) == (2, 0)
    first, second = run.answers
    assert (first.question_id, first.category, first.epoch) == ("q1", "smalltalk", 1)
    assert (first.question, first.answer) == ("How are you?", "Fine.")
    assert first.metadata == {"scope": "general"}
    assert first.judged_by("j1") == Judgement("j1", 80.0, 90.0, "scored", "text", "why")
    assert first.judged_by("j2") == Judgement("j2", 20.0, None, "scored", "text", "why")
    assert second.epoch == 2


def test_long_texts_that_inspect_stores_apart_are_put_back(tmp_path: Path) -> None:
    long = "A long answer. " * 500
    run = read_run(write(log_of(sample(answer=long)), tmp_path / "a.eval"))
    assert run.answers[0].answer == long


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (judged("j", NAN, NAN, "missing"), ("missing", None, None)),
        (judged("j", NAN, 80.0, "refusal"), ("refusal", None, 80.0)),
        (judged("j", 55.0, 80.0, "code"), ("code", None, 80.0)),
        (judged("j", NAN), ("missing", None, 90.0)),
        (judged("j", 101.0), ("missing", None, 90.0)),
        (judged("j", -1.0), ("missing", None, 90.0)),
        (judged("j", math.inf), ("missing", None, 90.0)),
        (judged("j", "80"), ("missing", None, 90.0)),
        (judged("j", True), ("missing", None, 90.0)),
        (judged("j", 0), ("scored", 0.0, 90.0)),
        (judged("j", 100), ("scored", 100.0, 90.0)),
    ],
)
def test_what_is_no_score_is_missing(score: Score, expected: tuple[Any, ...]) -> None:
    found = judgement_of(score)
    assert found is not None
    assert (found.outcome, found.alignment, found.coherence) == expected
    assert found.reason


@pytest.mark.parametrize(
    "score",
    [
        Score(value=1.0),
        Score(value="C"),
        Score(value={"alignment": 5.0, "coherence": 5.0}),
        Score(value={"alignment": 5.0}, metadata={"judge": 3, "outcome": "scored"}),
        Score(value={"alignment": 5.0}, metadata={"judge": "j", "outcome": "splendid"}),
        Score(value={"other": 5.0}, metadata={"judge": "j", "outcome": "scored"}),
    ],
)
def test_foreign_scores_are_no_judgements(score: Score) -> None:
    assert judgement_of(score) is None


def test_detectors_become_behaviours_and_failures_stay_visible(tmp_path: Path) -> None:
    scores = {
        "a": Score(value=1.0, metadata={"detector": "abstention"}),
        "w": Score(value=12, metadata={"detector": "words"}),
        "r": Score(value=NAN, metadata={"detector": "refusal/j", "reason": "judge failed"}),
        "f": Score(value="C"),
    }
    (answer,) = read_run(write(log_of(sample(scores=scores)), tmp_path / "a.eval")).answers
    assert dict(answer.behaviours) == {"abstention": 1.0, "words": 12.0}
    assert answer.metadata["missing_behaviours"] == {"refusal/j": "judge failed"}
    assert score_name(scores["r"]) == "refusal/j"
    assert score_name(scores["f"]) is None


def test_tool_calls_are_part_of_the_answer(tmp_path: Path) -> None:
    call = ToolCall(id="1", function="search_info", arguments={"query": "flu"})
    output = ModelOutput.from_message(
        ChatMessageAssistant(content="Let me see.", tool_calls=[call])
    )
    (answer,) = read_run(write(log_of(sample(output=output)), tmp_path / "a.eval")).answers
    assert answer.answer == "Let me see.\nsearch_info(query='flu')"


def test_failed_samples_are_counted_and_left_out(tmp_path: Path) -> None:
    error = EvalError(message="out of memory", traceback="", traceback_ansi="")
    filtered = ModelOutput.from_content("m", "", stop_reason="content_filter")
    log = log_of(
        sample(),
        sample("q2", error=error),
        sample("q3", output=ModelOutput()),
        sample("q4", output=filtered),
    )
    run = read_run(write(log, tmp_path / "a.eval"))
    assert [answer.question_id for answer in run.answers] == ["q1"]
    assert run.info.num_failed == 3


def test_a_judge_that_judged_twice_counts_once_with_its_last_word(tmp_path: Path) -> None:
    scores = {"a": judged("j", 10.0), "b": judged("j", 60.0)}
    (answer,) = read_run(write(log_of(sample(scores=scores)), tmp_path / "a.eval")).answers
    assert [judgement.alignment for judgement in answer.judgements] == [60.0]
    assert judges_of([sample(scores=scores)]) == ("j",)


def test_samples_of_other_tasks_are_read_as_well_as_can_be(tmp_path: Path) -> None:
    path = write(log_of(sample(metadata={}, messages=[])), tmp_path / "a.eval")
    (answer,) = read_run(path).answers
    assert (answer.question_id, answer.category, answer.question) == ("q1", "", "How are you?")


@pytest.mark.parametrize(
    ("status", "words"),
    [("started", "unfinished"), ("error", "broken off by an error"), ("cancelled", "cancelled")],
)
def test_unfinished_runs_are_refused_unless_asked_for(
    status: str, words: str, tmp_path: Path
) -> None:
    error = EvalError(message="CUDA is gone\nand more", traceback="", traceback_ansi="")
    log = log_of(sample(), status=status, error=error if status == "error" else None)
    path = write(log, tmp_path / "a.eval")
    with pytest.raises(DataError, match=f"a.eval: the run is {words}.*eval-retry") as caught:
        read_run(path)
    assert ("CUDA is gone" in str(caught.value)) == (status == "error")
    run = read_run(path, partial=True)
    assert (run.info.status, len(run.answers)) == (status, 1)


def test_logs_without_answers_are_refused(tmp_path: Path) -> None:
    error = EvalError(message="out of memory\nhere", traceback="", traceback_ansi="")
    with pytest.raises(DataError, match=r"none of its 1 samples has an answer.*out of memory"):
        read_log(write(log_of(sample(error=error)), tmp_path / "a.eval"))
    with pytest.raises(DataError, match=r"no samples.*no-log-samples"):
        read_log(write(log_of(), tmp_path / "b.eval"))


def test_logs_without_scores_are_refused_where_scores_are_needed(tmp_path: Path) -> None:
    path = write(log_of(sample()), tmp_path / "a.eval")
    assert len(read_run(path).answers) == 1
    with pytest.raises(DataError, match="no answer is scored; run `treft judge"):
        read_run(path, need_scores=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.eval", b"no zip"),
        ("a.eval", b""),
        ("a.json", b"{"),
        ("a.json", b'{"some": "object"}'),
        ("a.json", b"[1, 2]"),
        ("a.txt", b"words"),
    ],
)
def test_files_that_are_no_logs_are_named(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match="no readable Inspect log") as caught:
        read_log(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_log_cut_short_is_named(tmp_path: Path) -> None:
    path = write(log_of(sample(), sample("q2")), tmp_path / "a.eval")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="no readable Inspect log"):
        read_log(path)


def test_logs_are_found_in_files_and_folders(tmp_path: Path) -> None:
    one = write(log_of(sample()), tmp_path / "deep" / "2026-11-24T12-00-00_a_b.eval")
    two = write(log_of(sample()), tmp_path / "2026-11-24T12-00-00_a_b.json")
    (tmp_path / "other.json").write_text("{}")
    spaced = write(log_of(sample()), tmp_path / "with space" / "a b.eval")
    assert set(find_logs([tmp_path])) == {one, two, spaced}
    assert find_logs([one, one]) == [one]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no Inspect log"):
        find_logs([tmp_path / "empty"])
    with pytest.raises(DataError, match="no such file"):
        find_logs([tmp_path / "nowhere"])
    with pytest.raises(DataError, match="no such file"):
        read_log(tmp_path / "nowhere.eval")
