"""What judging costs is said when a task is made, and a limit refuses it there."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_judges import CALLS
from inspect_ai import Task, eval
from inspect_ai.log import EvalLog
from inspect_ai.model import ModelOutput, ModelUsage, get_model

from treft.errors import ConfigError
from treft.evaluation.audit import em_audit
from treft.evaluation.tasks import behaviour, em_general, utility
from treft.judging import cost
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


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    caplog.set_level(logging.WARNING, logger=cost.__name__)

    def last() -> str:
        found = [one.getMessage() for one in caplog.records if one.name == cost.__name__]
        caplog.clear()
        (only,) = found
        return only

    return last


def input_tokens(words: str) -> int:
    found = re.search(r"about ([\d,]+) input tokens", words)
    assert found is not None
    return int(found[1].replace(",", ""))


def test_the_number_of_calls_is_exact_and_said_before_the_first(
    questions: str, said: Callable[[], str]
) -> None:
    """5 questions, 2 judges, alignment and coherence, for each of 3 epochs: all answers differ."""
    task = em_general(questions=questions, judge=JUDGES)
    words = said()
    assert "20 judge calls" in words
    assert f"at most {20 * 16} output tokens for each epoch" in words
    assert not CALLS
    log = run(task, epochs=3)
    assert log.status == "success", log.error
    assert sum(CALLS.values()) == 20 * 3


def test_above_the_limit_nothing_is_asked_of_anyone(questions: str) -> None:
    with pytest.raises(ConfigError, match=r"20 judge calls are more than 19.*-T judge_limit=20"):
        em_general(questions=questions, judge=JUDGES, judge_limit=19)
    assert not CALLS


@pytest.mark.parametrize("limit", [20, None])
def test_a_limit_that_is_kept_or_absent_lets_the_run_be(questions: str, limit: int | None) -> None:
    assert run(em_general(questions=questions, judge=JUDGES, judge_limit=limit)).status == "success"


def test_every_task_that_judges_has_one(questions: str, said: Callable[[], str]) -> None:
    """The audit counts all its conditions, and says so once."""
    judge = JUDGES[0]
    for make in (
        lambda: em_audit(questions=questions, judge=judge, judge_limit=0),
        lambda: behaviour(kind="refusal", judge=judge, judge_limit=0),
        lambda: utility(judge=judge, judge_limit=0),
    ):
        with pytest.raises(ConfigError, match="judge calls are more than 0"):
            make()
        said()
    task = em_audit(questions=questions, judge=judge)
    assert f"em_audit: judging costs at most {2 * len(task.dataset)} judge calls" in said()
    assert len(task.dataset) > 5


def test_what_is_not_paid_is_not_said(questions: str, caplog: pytest.LogCaptureFixture) -> None:
    em_general(questions=questions)
    em_general(questions="organism")
    assert not [one for one in caplog.records if one.name == cost.__name__]


def test_conversations_are_shown_whole(said: Callable[[], str]) -> None:
    task = utility(judge=JUDGES[0])
    words, num = said(), len(task.dataset)
    assert f"{num} judge calls" in words
    assert input_tokens(words) > num * (len(utility_prompt([])) // 4 + 2 * 1024)
    assert run(task, limit=2).status == "success"
    assert sum(CALLS.values()) == 2
