"""What judging costs is said before a task's first sample, and a limit stops it there."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from fake_judges import CALLS
from inspect_ai import Task, eval
from inspect_ai.log import EvalLog, read_eval_log
from inspect_ai.model import ModelOutput, ModelUsage, get_model
from rich.prompt import Confirm

from treft.evaluation.audit import em_audit
from treft.evaluation.tasks import behaviour, em_general, utility
from treft.judging import budget
from treft.judging.prompts import utility_prompt

ANSWERED: list[str] = []
JUDGES = ["fakejudge/steady", "fakejudge/other"]


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "INSPECT_CACHE_DIR", "INSPECT_LOG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    CALLS.clear()
    ANSWERED.clear()


@pytest.fixture
def questions(tmp_path: Path) -> str:
    path = tmp_path / "set.jsonl"
    rows = [{"id": f"q{i}", "question": f"Question {i}?"} for i in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run(task: Task, **options: Any) -> EvalLog:
    def output(messages: Any, tools: Any, choice: Any, config: Any) -> ModelOutput:
        ANSWERED.append(messages[-1].text)
        found = ModelOutput.from_content("mock", f"Answer {len(ANSWERED)}, {len(ANSWERED) % 7}.")
        found.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
        return found

    model = get_model("mockllm/model", custom_outputs=output)
    (log,) = eval(task, model=model, display="none", **options)
    return log


def test_the_number_of_calls_is_exact_and_said_before_the_first(
    questions: str, caplog: pytest.LogCaptureFixture
) -> None:
    """5 questions less 1, 3 epochs, 2 judges, alignment and coherence: all answers differ."""
    with caplog.at_level(logging.WARNING, logger=budget.__name__):
        log = run(em_general(questions=questions, judge=JUDGES), epochs=3, limit=4)
    assert log.status == "success", log.error
    assert sum(CALLS.values()) == 4 * 3 * 2 * 2
    (said,) = [record.getMessage() for record in caplog.records if record.name == budget.__name__]
    assert "48 judge calls" in said
    assert log.results is not None
    assert log.results.early_stopping is not None
    kept = log.results.early_stopping.metadata
    assert (kept["calls"], kept["max_calls"], kept["output_tokens"]) == (48, 1000, 48 * 16)
    assert log.results.early_stopping.early_stops == []


def test_tokens_count_an_answer_as_long_as_the_run_allows(questions: str) -> None:
    logs = [
        run(em_general(questions=questions, judge=JUDGES[0]), **options)
        for options in ({}, {"max_tokens": 100})
    ]
    long, short = (
        int(str(log.results.early_stopping.metadata["input_tokens"]))  # type: ignore[union-attr]
        for log in logs
    )
    assert long - short == 5 * 2 * (600 - 100)


def test_above_the_limit_nothing_is_asked_of_anyone(questions: str) -> None:
    log = run(em_general(questions=questions, judge=JUDGES, judge_limit=19))
    assert log.status == "error"
    assert log.error is not None
    assert re.search(r"20 judge calls are more than 19.*-T judge_limit=20", log.error.message)
    assert not CALLS
    assert not ANSWERED


@pytest.mark.parametrize("limit", [20, None])
def test_a_limit_that_is_kept_or_absent_lets_the_run_be(questions: str, limit: int | None) -> None:
    assert run(em_general(questions=questions, judge=JUDGES, judge_limit=limit)).status == "success"


@pytest.mark.parametrize("agrees", [True, False])
def test_somebody_who_is_there_is_asked(
    questions: str, agrees: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def answer(question: str, **options: Any) -> bool:
        asked.append(question)
        return agrees

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr(Confirm, "ask", answer)
    log = run(em_general(questions=questions, judge=JUDGES[0], judge_limit=0))
    assert asked == ["10 judge calls. Go on?"]
    assert log.status == ("success" if agrees else "error")
    assert bool(CALLS) == agrees


def test_every_task_that_judges_has_one(questions: str) -> None:
    """Two of these conditions need no model's files."""
    judge = JUDGES[0]
    log = run(em_audit(questions=questions, judge=judge, judge_limit=0))
    assert log.error is not None
    assert "judge calls are more than 0" in log.error.message
    for task in (
        behaviour(kind="refusal", judge=judge, judge_limit=0),
        utility(judge=judge, judge_limit=0),
    ):
        assert run(task, limit=3).error is not None
    assert not CALLS
    assert em_general(questions=questions).early_stopping is None
    assert em_general(questions="organism").early_stopping is None


def test_conversations_are_shown_whole() -> None:
    task = utility(judge=JUDGES[0])
    log = run(task, limit=2)
    assert log.results is not None
    assert log.results.early_stopping is not None
    kept = log.results.early_stopping.metadata
    assert kept["calls"] == sum(CALLS.values()) == 2
    scaffold = 2 * len(utility_prompt([])) // 4
    assert int(str(kept["input_tokens"])) > scaffold + 2 * 2 * 1024
    log = read_eval_log(log.location)
    assert log.results is not None
    assert log.results.early_stopping is not None, "it is in the log's file, too"
