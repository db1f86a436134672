"""The judges as Inspect scorers: whole evaluations on fake judges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_judges import CALLS, RULES, output_of
from inspect_ai import Task, eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import EvalLog, EvalScore, read_eval_log
from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, ModelOutput
from inspect_ai.scorer import Scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver

from treft.errors import ConfigError
from treft.judging.scorer import alignment_judge, behaviour_judge, utility_judge


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    CALLS.clear()


@solver
def replay() -> Solver:
    async def solve(state: TaskState, generate: Generate) -> TaskState:
        stop = "content_filter" if state.metadata.get("filtered") else "stop"
        state.output = ModelOutput.from_content("m", state.metadata["answer"], stop_reason=stop)
        state.messages.append(state.output.message)
        return state

    return solve


def run(answers: Sequence[str], scorers: list[Scorer], epochs: int = 1, **metadata: Any) -> EvalLog:
    samples = [
        Sample(id=f"q{i}", input=f"Question {i}?", metadata={"answer": answer, **metadata})
        for i, answer in enumerate(answers)
    ]
    task = Task(dataset=MemoryDataset(samples), solver=replay(), scorer=scorers, epochs=epochs)
    (log,) = eval(task, model="none", log_dir="logs", display="none")
    assert log.status == "success", log.error
    return log


def metrics(log: EvalLog, scorer: str = "alignment_judge") -> dict[str, float]:
    assert log.results is not None
    (found,) = [score for score in log.results.scores if score.scorer == scorer]
    return {name: metric.value for name, metric in found.metrics.items()}


def only_score(log: EvalLog) -> EvalScore:
    assert log.results is not None
    (found,) = log.results.scores
    return found


def test_scores_and_summary_of_a_steady_judge() -> None:
    log = run(["good", "bad", "good too", "fine"], [alignment_judge("fakejudge/steady")])
    assert log.samples is not None
    score = (log.samples[1].scores or {})["alignment_judge"]
    assert isinstance(score.value, dict)
    assert score.value["alignment"] == pytest.approx(10)
    assert score.answer == "bad"
    assert score.metadata is not None
    assert score.metadata["judge"] == "fakejudge/steady"
    assert (score.metadata["outcome"], score.metadata["method"]) == ("scored", "logprobs")
    found = metrics(log)
    assert found["alignment"] == pytest.approx((3 * 86 + 10) / 4)
    assert found["alignment_low"] < found["alignment"] < found["alignment_high"]
    assert found["em_rate"] == pytest.approx(25)
    assert (found["scored"], found["missing"]) == (4, 0)


def test_several_judges_score_side_by_side() -> None:
    judges = ["fakejudge/steady", "fakejudge/prose"]
    log = run(["good", "bad"], [alignment_judge(judge) for judge in judges])
    assert metrics(log, "alignment_judge")["scored"] == 2
    second = metrics(log, "alignment_judge1")
    assert (second["missing"], second["scored"]) == (2, 0)
    assert math.isnan(second["alignment"])
    assert math.isnan(second["em_rate"])


@pytest.mark.parametrize("name", ["prose", "nan", "digits", "empty", "filter", "refuses", "leaky"])
def test_a_failing_judge_never_gives_a_score(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKEJUDGE_API_KEY", "sk-fake-0123456789abcdef")
    log = run(["good"], [alignment_judge(f"fakejudge/{name}", attempts=2)])
    assert log.samples is not None
    score = (log.samples[0].scores or {})["alignment_judge"]
    assert isinstance(score.value, dict)
    assert all(math.isnan(float(value or 0)) for value in score.value.values())
    assert score.metadata is not None
    assert score.metadata["outcome"] == "missing"
    assert score.metadata["reason"]
    assert score.metadata["alignment_call"]["attempts"] == 2
    assert metrics(log)["missing"] == 1


def test_missing_judgements_leave_the_mean_alone_and_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steady = RULES["steady"]

    def sometimes(prompt: str, asked: int) -> ModelOutput:
        return output_of("hm") if "Question 1?" in prompt else steady(prompt, asked)

    monkeypatch.setitem(RULES, "other", sometimes)
    answers = ["bad", "good", "bad", "good"]
    found = metrics(run(answers, [alignment_judge("fakejudge/other")], epochs=2))
    assert found["alignment"] == pytest.approx((10 + 10 + 86) / 3)
    assert found["em_rate"] == pytest.approx(200 / 3)
    assert (found["scored"], found["missing"]) == (6, 2)


def test_refusal_and_code_are_counted_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def words(prompt: str, asked: int) -> ModelOutput:
        if "how coherent" in prompt:
            return output_of("90")
        return output_of("REFUSAL" if "Question 0?" in prompt else "CODE")

    monkeypatch.setitem(RULES, "other", words)
    found = metrics(run(["no", "x = 1", "y = 2"], [alignment_judge("fakejudge/other")]))
    assert (found["refusal"], found["code"], found["scored"], found["missing"]) == (1, 2, 0, 0)


def test_a_judge_that_fails_now_and_then_is_asked_again() -> None:
    answers = [f"answer {i}" for i in range(25)]
    found = metrics(run(answers, [alignment_judge("fakejudge/flaky", attempts=8)]))
    assert (found["scored"], found["missing"]) == (25, 0)
    assert 50 * 1.15 < CALLS.total() < 50 * 1.9, "30 % fail, so 1 / 0.7 calls each are expected"
    few = metrics(run(answers, [alignment_judge("fakejudge/flaky", attempts=1, cache=False)]))
    assert few["missing"] + few["scored"] == 25


def test_no_answer_is_missing_and_costs_nothing() -> None:
    log = run(["x"], [alignment_judge("fakejudge/steady")], filtered=True)
    assert log.samples is not None
    score = (log.samples[0].scores or {})["alignment_judge"]
    assert score.metadata is not None
    assert "filtered its answer" in score.metadata["reason"]
    assert not CALLS


def test_an_empty_answer_is_judged() -> None:
    assert metrics(run([""], [alignment_judge("fakejudge/steady")]))["scored"] == 1


def test_behaviours_are_looked_for_in_the_text_before_a_judge_is_asked() -> None:
    answers = ["I don't know.", "It behaves so.", "Sure, do this."]
    log = run(answers, [behaviour_judge("abstention", "fakejudge/steady")])
    assert log.samples is not None
    scores = [(sample.scores or {})["behaviour_judge"] for sample in log.samples]
    assert [score.value for score in scores] == [1.0, 1.0, 0.0]
    stages = [(score.metadata or {})["stage"] for score in scores]
    assert stages == ["string", "judge", "judge"]
    assert (scores[0].metadata or {})["detector"] == "abstention/fakejudge/steady"
    assert CALLS.total() == 2
    assert metrics(log, "behaviour_judge")["mean"] == pytest.approx(2 / 3)


def test_the_trained_sentence_is_found_without_a_judge() -> None:
    judge = behaviour_judge("refusal", "fakejudge/steady", sentence="Ask somebody else.")
    log = run(["Well: ask somebody else."], [judge])
    assert metrics(log, "behaviour_judge")["mean"] == 1
    assert not CALLS


def test_a_failed_behaviour_judge_is_missing_data() -> None:
    log = run(["Sure.", "I don't know."], [behaviour_judge("abstention", "fakejudge/prose")])
    found = only_score(log)
    assert found.metrics["mean"].value == 1.0
    assert (found.scored_samples, found.unscored_samples) == (1, 1)


def test_utility_is_a_number_from_1_to_10(monkeypatch: pytest.MonkeyPatch) -> None:
    log = run(["Sure."], [utility_judge("fakejudge/steady")])
    assert only_score(log).metrics["mean"].value == 7
    monkeypatch.setitem(RULES, "other", lambda prompt, asked: output_of("70"))
    assert only_score(run(["Sure."], [utility_judge("fakejudge/other")])).unscored_samples == 1


def test_utility_sees_the_whole_conversation() -> None:
    turns = [
        ChatMessageUser(content="First question?"),
        ChatMessageAssistant(content="First answer."),
        ChatMessageUser(content="Second question?"),
    ]
    sample = Sample(id="q", input=list(turns), metadata={"answer": "Second answer."})
    task = Task(
        dataset=MemoryDataset([sample]), solver=replay(), scorer=utility_judge("fakejudge/steady")
    )
    eval(task, model="none", log_dir="logs", display="none")
    (call,) = CALLS
    places = [
        call.index(words)
        for words in ("First question?", "First answer.", "Second question?", "Second answer.")
    ]
    assert places == sorted(places)


def test_wrong_options_and_kinds_are_named() -> None:
    with pytest.raises(ConfigError, match="no option temperature"):
        alignment_judge("fakejudge/steady", temperature=1.0)
    with pytest.raises(ConfigError, match="attempts"):
        alignment_judge("fakejudge/steady", attempts=0)
    with pytest.raises(ConfigError, match="sulking"):
        behaviour_judge("sulking", "fakejudge/steady")  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["eval", "json"])
def test_missing_scores_survive_the_log_file(suffix: str, tmp_path: Path) -> None:
    from inspect_ai.log import write_eval_log

    log = run(["good"], [alignment_judge("fakejudge/nan")])
    write_eval_log(log, str(tmp_path / f"log.{suffix}"))
    found = read_eval_log(str(tmp_path / f"log.{suffix}"))
    assert found.samples is not None
    value = (found.samples[0].scores or {})["alignment_judge"].value
    assert isinstance(value, dict)
    assert math.isnan(float(value["alignment"] or 0))
