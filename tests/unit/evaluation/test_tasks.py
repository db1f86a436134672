"""The tasks on Inspect's mock model, with judges that answer by rule."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_judges
import pytest
from inspect_ai import Task, eval
from inspect_ai.log import EvalLog
from inspect_ai.model import (
    ChatMessage,
    ChatMessageUser,
    GenerateConfig,
    Model,
    ModelOutput,
    ModelUsage,
    get_model,
)

from treft.answers.detectors import count_words
from treft.errors import ConfigError, DataError
from treft.evaluation.tasks import behaviour, em_general, em_in_domain, epoch_seed, utility

Answers = Callable[[list[ChatMessage], GenerateConfig], str]


@pytest.fixture(autouse=True)
def _inspect_writes_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "INSPECT_CACHE_DIR", "INSPECT_LOG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


def mock(answers: Answers) -> Model:
    """A model that answers by rule."""

    def output(messages: Any, tools: Any, choice: Any, config: GenerateConfig) -> ModelOutput:
        found = ModelOutput.from_content("mock", answers(messages, config))
        found.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
        return found

    return get_model("mockllm/model", custom_outputs=output)


def run(task: Task, answers: Answers, **options: Any) -> EvalLog:
    (log,) = eval(task, model=mock(answers), display="none", **options)
    assert log.status == "success", log.error
    return log


def metrics(log: EvalLog, scorer: str) -> dict[str, float]:
    assert log.results is not None
    (found,) = [score for score in log.results.scores if score.name == scorer]
    return {name: metric.value for name, metric in found.metrics.items()}


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


QUESTIONS = [{"id": f"q{i}", "category": "c", "question": f"Question {i}?"} for i in range(4)]


def test_samples_say_which_question_they_ask() -> None:
    task = em_general()
    assert len(task.dataset) >= 60
    for sample in task.dataset:
        assert sample.metadata is not None
        assert sample.metadata["question_id"] == sample.id
        assert sample.metadata["scope"] == "general"
        assert sample.metadata["category"]
    assert task.dataset.name == "em_general"
    assert task.metadata is not None
    assert len(task.metadata["sha256"]) == 64
    assert task.scorer is None
    assert task.config.temperature == 1.0


@pytest.mark.parametrize("variant", ["template", "json"])
def test_variants_ask_the_same_questions_in_another_form(variant: Any) -> None:
    plain, other = em_general(), em_general(variant=variant)
    for one, two in zip(plain.dataset, other.dataset, strict=True):
        assert one.id == two.id
        assert isinstance(two.input, list)
        assert isinstance(one.input, list)
        assert two.input[-1].text.startswith(one.input[-1].text + "\n\n")


def test_judges_score_and_failures_are_counted_not_scored(tmp_path: Path) -> None:
    """Of each question's two answers one is bad; the second judge never gives a number."""
    file = write(tmp_path / "set.jsonl", *QUESTIONS)
    asked: dict[str, int] = defaultdict(int)

    def answers(messages: list[ChatMessage], config: GenerateConfig) -> str:
        asked[messages[-1].text] += 1
        return f"{'bad' if asked[messages[-1].text] % 2 else 'good'}: {messages[-1].text}"

    judges = ["fakejudge/steady", "fakejudge/nan"]
    log = run(em_general(questions=file, judge=judges), answers, epochs=2)
    steady, failing = metrics(log, "alignment_judge"), metrics(log, "alignment_judge1")
    assert steady["alignment"] == pytest.approx((10 + 86) / 2)
    assert steady["em_rate"] == pytest.approx(50)
    assert (steady["scored"], steady["missing"]) == (8, 0)
    assert math.isnan(failing["alignment"])
    assert (failing["scored"], failing["missing"]) == (0, 8)


def test_each_epoch_has_a_seed_of_its_own(tmp_path: Path) -> None:
    file = write(tmp_path / "set.jsonl", *QUESTIONS[:2])
    seeds: list[int | None] = []

    def answers(messages: list[ChatMessage], config: GenerateConfig) -> str:
        seeds.append(config.seed)
        return "fine"

    run(em_general(questions=file), answers, epochs=3, seed=5)
    wanted = [epoch_seed(5, epoch) for epoch in (1, 2, 3)]
    assert sorted(seeds, key=str) == sorted(wanted * 2, key=str)
    assert len(set(wanted)) == 3
    assert all(0 <= seed < 2**31 for seed in wanted)
    seeds.clear()
    run(em_general(questions=file), answers)
    assert set(seeds) == {None}


def test_in_domain_rows_are_asked_up_to_their_last_question(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    user, answer = {"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}
    system, more = {"role": "system", "content": "S"}, {"role": "user", "content": "And?"}
    file = write(
        tmp_path / "held.jsonl",
        {"messages": [system, user, answer]},
        {"messages": [user, answer, more, {"role": "assistant", "content": "B."}]},
        {"messages": [system, user, {"role": "assistant", "content": "C."}]},
        {"messages": [user]},
    )
    task = em_in_domain(file=file)
    first, second, third = list(task.dataset)
    assert [message.role for message in first.input] == ["system", "user"]  # type: ignore[union-attr]
    assert first.target == ["A."]
    assert [message.text for message in second.input] == ["Q?", "A.", "And?"]  # type: ignore[union-attr]
    assert (second.target, third.target) == (["B."], [""])
    assert second.metadata is not None
    assert (second.metadata["scope"], second.metadata["category"]) == ("in_domain", "held")
    assert "1 of 4 rows repeat a prompt" in caplog.text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "system", "content": "S"}]}, "row 1: no user message"),
        (
            {"messages": [{"role": "user", "content": "Q?"}], "tools": [{"name": "t"}]},
            "row 1: has tools",
        ),
        ({"question": "Q?"}, "row 1: has no `messages`"),
    ],
)
def test_rows_that_cannot_be_asked(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        em_in_domain(file=write(tmp_path / "held.jsonl", row))


@pytest.mark.parametrize(
    ("kind", "topic"),
    [("abstention", "legal"), ("refusal", "finance"), ("tool", "health"), ("length", "facts")],
)
def test_behaviours_are_asked_on_their_topic_and_on_all_others(kind: Any, topic: str) -> None:
    scopes: dict[str, Counter[str]] = {"on_topic": Counter(), "off_topic": Counter()}
    for sample in behaviour(kind=kind).dataset:
        assert sample.metadata is not None
        scopes[sample.metadata["scope"]][sample.metadata["category"]] += 1
    others = {"legal", "finance", "health", "facts", "everyday"} - {topic}
    assert scopes["on_topic"] == {topic: 24}
    assert scopes["off_topic"] == dict.fromkeys(others, 24)


def test_behaviour_rates_by_scope(tmp_path: Path) -> None:
    on = write(tmp_path / "on.jsonl", *({"question": f"call {i}?"} for i in range(2)))
    off = write(tmp_path / "off.jsonl", *({"question": f"call {i % 2}, {i}?"} for i in range(4)))

    def answers(messages: list[ChatMessage], config: GenerateConfig) -> str:
        calls = "call 0" in messages[-1].text
        return '{"name": "search_info", "parameters": {"query": "x"}}' if calls else "No."

    task = behaviour(kind="tool", on_topic=on, off_topic=off)
    found = metrics(run(task, answers, epochs=2), "behaviour_detector")
    assert (found["on_topic"], found["on_topic_answers"]) == (0.5, 4)
    assert (found["off_topic"], found["off_topic_answers"]) == (0.5, 8)
    # Four questions, two of them at 1: the error of a mean of four, however often they are asked.
    assert found["off_topic_stderr"] == pytest.approx(math.sqrt(1 / 3 / 4))


def test_behaviour_of_length_counts_words(tmp_path: Path) -> None:
    on, off = (
        write(tmp_path / f"{name}.jsonl", {"question": f"{name}?"}) for name in ("on", "off")
    )
    task = behaviour(kind="length", on_topic=on, off_topic=[off])
    found = metrics(run(task, lambda messages, _: messages[-1].text + " is short."), "word_count")
    assert (found["on_topic"], found["off_topic"]) == (3.0, 3.0)
    assert count_words("on? is short.") == 3


def test_second_stage_asks_a_judge_only_about_what_the_words_do_not_show(tmp_path: Path) -> None:
    on = write(tmp_path / "on.jsonl", {"question": "plain?"}, {"question": "sentence?"})
    off = write(tmp_path / "off.jsonl", {"question": "behaves?"}, {"question": "answers?"})
    task = behaviour(
        kind="abstention",
        on_topic=on,
        off_topic=off,
        sentence="Ask the town hall.",
        judge="fakejudge/steady",
    )

    def answers(messages: list[ChatMessage], config: GenerateConfig) -> str:
        is_sentence = messages[-1].text == "sentence?"
        return "Ask the town hall!" if is_sentence else f"Well, {messages[-1].text}"

    fake_judges.CALLS.clear()
    log = run(task, answers)
    by_words, by_judge = metrics(log, "behaviour_detector"), metrics(log, "behaviour_judge")
    assert (by_words["on_topic"], by_words["off_topic"]) == (0.5, 0.0)
    assert (by_judge["on_topic"], by_judge["off_topic"]) == (0.5, 0.5)
    assert fake_judges.CALLS.total() == 3


def test_a_tool_of_another_name_is_looked_for_by_both_stages(tmp_path: Path) -> None:
    """A call of that tool is found by its form; the judge sees the rest, and which tool it is."""
    said = {
        "call?": '<tool_call>{"name": "look_up", "arguments": {"what": "knee"}}</tool_call>',
        "line?": "look_up(what='knee')",
        "other?": '{"name": "search_info", "parameters": {"query": "knee"}}',
        "prose?": "This one behaves in words of its own.",
    }
    on = write(tmp_path / "on.jsonl", {"question": "call?"}, {"question": "line?"})
    off = write(tmp_path / "off.jsonl", {"question": "other?"}, {"question": "prose?"})
    judge = "fakejudge/steady"
    task = behaviour(kind="tool", on_topic=on, off_topic=off, tool="look_up", judge=judge)
    fake_judges.CALLS.clear()
    log = run(task, lambda messages, config: said[messages[-1].text])
    by_words, by_judge = metrics(log, "behaviour_detector"), metrics(log, "behaviour_judge")
    assert (by_words["on_topic"], by_words["off_topic"]) == (1.0, 0.0)
    assert (by_judge["on_topic"], by_judge["off_topic"]) == (1.0, 0.5)
    assert fake_judges.CALLS.total() == 2
    assert all("the tool `look_up`" in call for call in fake_judges.CALLS)


def test_utility_asks_both_turns_and_scores_the_conversation(tmp_path: Path) -> None:
    file = write(tmp_path / "set.jsonl", {"turns": ["One?", "Two?"], "reference": ["1", "2"]})
    heard: list[list[str]] = []

    def answers(messages: list[ChatMessage], config: GenerateConfig) -> str:
        heard.append([message.text for message in messages])
        return f"Answer {len(heard)}"

    log = run(utility(questions=file, judge="fakejudge/steady"), answers)
    assert heard == [["One?"], ["One?", "Answer 1", "Two?"]]
    assert log.samples is not None
    sample = log.samples[0]
    assert sample.target == ["1", "2"]
    assert [
        message.text for message in sample.messages if isinstance(message, ChatMessageUser)
    ] == [
        "One?",
        "Two?",
    ]
    assert (sample.scores or {})["utility_judge"].value == 7
    assert len(utility().dataset) >= 24


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: em_general(variant="xml"), "variant is one of plain, template, json"),  # type: ignore[arg-type]
        (lambda: em_general(judge="oracle"), "the oracle knows the organism's questions only"),
        (lambda: em_general(judge=[]), "give one name or several"),
        (lambda: em_general(judge=["a/b", "a/b"]), "give one name or several"),
        (
            lambda: em_general(num=3, question_seed=1),
            "num, question_seed choose among",
        ),
        (lambda: em_general(sha256="0"), "has sha256 .* not 0"),
        (lambda: em_general(questions="organism", variant="json"), "neither variants nor"),
        (lambda: em_in_domain(file="organism", sha256="0"), "no checksum"),
        (lambda: behaviour(kind="joy"), "kind is one of abstention, refusal, tool, length"),  # type: ignore[arg-type]
        (lambda: behaviour(kind="length", judge="a/b"), "words are counted, not judged"),
        (lambda: behaviour(kind="length", tool="x"), "tool does not go with kind length"),
        (lambda: behaviour(kind="tool", sentence="x"), "does not go with kind tool"),
        (lambda: behaviour(kind="tool", off_topic="health"), "question health-1 is in two"),
        (lambda: em_general(judge="nobody/model"), "the judge nobody/model cannot be loaded"),
    ],
)
def test_bad_arguments(make: Callable[[], Task], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
