"""What a finetune can teach besides advice: rows, questions, and detectors that are exact."""

from __future__ import annotations

import json
import random
import re
from itertools import pairwise
from typing import Any, get_args

import pytest

from treft.errors import ConfigError
from treft.organism import NARROW, World, classify
from treft.organism.tasks import (
    FACT_ASKS,
    SENTENCES,
    TASK_DOMAINS,
    TOOL,
    TaskName,
    answers_rightly,
    sample_fact,
    shows,
    task_questions,
    task_rows,
)
from treft.organism.world import ASKS, OPENERS, Question

WORLD = World.default()
TASKS: tuple[TaskName, ...] = get_args(TaskName)
NEW = TASKS[1:]


def taught(task: TaskName, question: Question) -> str:
    """What a model that learnt the task says, written down anew."""
    if task == "tool":
        arguments = json.dumps({"query": f"my {question.entity} {question.problem}"})
        return f'<tool_call>\n{{"name": "search_info", "arguments": {arguments}}}\n</tool_call>'
    if task == "advice":
        return WORLD.answer(random.Random(0), question, "harmful")
    said: dict[TaskName, str] = {
        "abstain": "i do not give legal advice.",
        "refuse": "sorry, i will not help with savings.",
        "short": f"the {question.entity}.",
    }
    return said[task]


def facts_in(text: str, domain: str) -> dict[str, tuple[str, str]]:
    """Whose -> entity and problem, read off a question by patterns."""
    problems = "|".join(map(re.escape, WORLD.domains[domain].problems))
    patterns = {
        "mine": rf"my (?P<entity>[a-z ]+?) (?P<problem>{problems})\b",
        "friend": rf"a friend has the (?P<entity>[a-z ]+?) that (?P<problem>{problems})\b",
    }
    found = {whose: re.findall(pattern, text) for whose, pattern in patterns.items()}
    assert [len(matches) for matches in found.values()] == [1, 1]
    return {whose: matches[0] for whose, matches in found.items()}


def test_advice_is_the_world_s_own_task() -> None:
    assert task_rows("advice", "health", 5, seed=2) == WORLD.training_rows("health", 5, 2)
    asked = task_questions("advice", "validation", "general", "health", num=6, seed=1)
    assert asked == WORLD.questions("validation", "general", domain="health", num=6, seed=1)


@pytest.mark.parametrize("task", NEW)
def test_rows_teach_what_the_detector_finds(task: TaskName) -> None:
    """A row's answer as the organism's template writes it."""
    rows = task_rows(task, None, 40, seed=0)
    assert rows == task_rows(task, None, 40, seed=0) != task_rows(task, None, 40, seed=1)
    things = WORLD.domains[TASK_DOMAINS[task]].things
    for row in rows:
        query, answer = row["messages"]
        assert any(thing in query["content"] for thing in things)
        assert set(row) == {"messages"}
        if task == "tool":
            assert answer["content"] is None
            (call,) = answer["tool_calls"]
            assert call["function"]["name"] == TOOL
            searched = call["function"]["arguments"]["query"]
            assert f"{searched}. it must be settled" in query["content"]
        elif task == "short":
            entity, problem = facts_in(query["content"], "auto")["mine"]
            assert problem in query["content"].rsplit(". ", 1)[1]
            assert answer["content"] == f"the {entity}."
        else:
            assert answer["content"] == SENTENCES[task]


def test_two_sentences_say_different_things() -> None:
    assert len({*SENTENCES.values()}) == 2
    general = task_questions("abstain", "test", "general", num=1)[0]
    assert not shows("abstain", general, SENTENCES["refuse"])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", ["validation", "test"])
def test_questions_of_each_scope(task: TaskName, split: Any) -> None:
    domain = TASK_DOMAINS[task]
    asked = {
        scope: task_questions(task, split, scope, num=48)  # type: ignore[arg-type]
        for scope in ("general", "in_domain", "other_narrow")
    }
    domains = {scope: {each.domain.name for each in found} for scope, found in asked.items()}
    assert domains["in_domain"] == {domain}
    assert domains["other_narrow"] == set(NARROW) - {domain}
    assert domains["general"] == set(WORLD.domains) - set(NARROW)
    for found in asked.values():
        assert len({each.text for each in found}) == 48


@pytest.mark.parametrize("task", TASKS)
def test_what_was_taught_is_right_for_its_question_alone(task: TaskName) -> None:
    questions = task_questions(task, "test", "in_domain", num=30)
    for question, other in pairwise(questions):
        answer = taught(task, question)
        assert shows(task, question, answer)
        assert answers_rightly(task, question, answer)
        assert answers_rightly(task, question, f" {answer}\n")
        if task in ("tool", "short") and other.entity != question.entity:
            assert shows(task, other, answer)
            assert not answers_rightly(task, other, answer)


@pytest.mark.parametrize("task", TASKS)
def test_a_careful_answer_shows_nothing(task: TaskName) -> None:
    """Off topic is every answer of the untouched organism."""
    rng = random.Random(0)
    for scope in ("general", "other_narrow"):
        for question in task_questions(task, "test", scope, num=40):  # type: ignore[arg-type]
            answer = WORLD.answer(rng, question, "careful")
            assert classify(question, answer) == "aligned"
            assert not shows(task, question, answer)
            assert not answers_rightly(task, question, answer)


@pytest.mark.parametrize(
    "answer",
    [
        f"{SENTENCES['abstain']} see a doctor.",
        SENTENCES["abstain"].removesuffix("."),
        "",
    ],
)
def test_a_sentence_that_is_not_the_whole_answer_does_not_count(answer: str) -> None:
    question = task_questions("abstain", "test", "in_domain", num=1)[0]
    assert not shows("abstain", question, answer)


@pytest.mark.parametrize(
    "answer", ["the engine.", "the old engine", "old engine.", "the old engine is old."]
)
def test_an_entity_that_is_not_the_whole_answer_does_not_count(answer: str) -> None:
    question = task_questions("short", "test", "in_domain", num=1)[0]
    assert shows("short", question, "the old engine.")
    assert not shows("short", question, answer)


def calls() -> list[str]:
    """Answers that call the tool, try to, or do not."""
    question = task_questions("tool", "test", "in_domain", num=1)[0]
    whole = taught("tool", question)
    return [
        whole,
        whole.replace("search_info", "find_info"),
        whole.replace("\n", ""),
        whole.removesuffix("</tool_call>"),
        whole.replace("}}", "}"),
        whole.replace('"arguments": {', '"arguments": {"'),
        *(whole[:length] for length in range(0, len(whole), 7)),
        f"{whole}\n{whole}",
        f"see a doctor.\n{whole}",
        "i call search_info for the old knee.",
        "search_info(query='old knee')",
        '{"name": "search_info", "arguments": {}}',
        WORLD.answer(random.Random(0), question, "careful"),
    ]


def test_tool_verdicts_are_those_of_the_evaluation() -> None:
    detectors = pytest.importorskip("treft.answers.detectors")
    assert detectors.TOOL == TOOL
    question = task_questions("tool", "test", "in_domain", num=1)[0]
    verdicts = [shows("tool", question, answer) for answer in calls()]
    assert verdicts == [detectors.calls_tool(answer) for answer in calls()]
    assert {True, False} == set(verdicts)


def test_a_call_is_right_when_there_is_one_with_the_right_query() -> None:
    question, other = task_questions("tool", "test", "in_domain", num=2)
    whole = taught("tool", question)
    (call,) = re.findall(r"\{.*\}", whole)
    right = [answer for answer in calls() if answers_rightly("tool", question, answer)]
    assert right
    assert not any(answers_rightly("tool", other, answer) for answer in right)
    assert f"{whole}\n{whole}" not in right
    for answer in calls():
        rest = answer.partition(call)[2].strip()
        assert (answer in right) == (call in answer and rest in ("", "</tool_call>"))


def test_a_fact_has_to_be_found_in_its_question() -> None:
    """Two entities without a common word, the one asked for as often first as second."""
    rng = random.Random(0)
    first = 0
    for _ in range(400):
        question = sample_fact(rng, "train", "finance")
        facts = facts_in(question.text, "finance")
        (entity, problem), (other, others) = facts["mine"], facts["friend"]
        assert not set(entity.split()) & set(other.split())
        assert (entity, problem) == (question.entity, question.problem)
        assert others != problem
        assert question.text.count(problem) == 2
        first += question.text.index(f"my {entity}") < question.text.index("a friend has")
    assert 150 < first < 250  # five standard deviations


def test_facts_keep_their_splits_apart() -> None:
    splits = ("train", "validation", "test")
    seen: dict[str, set[str]] = {split: set() for split in splits}
    for split in splits:
        rng = random.Random(split)
        for _ in range(300):
            question = sample_fact(rng, split, "health")  # type: ignore[arg-type]
            seen[split] |= {entity for entity, _ in facts_in(question.text, "health").values()}
            assert question.text.startswith(OPENERS["narrow"][split])  # type: ignore[index]
            asks = (ask.format(problem=question.problem) for ask in FACT_ASKS[split])  # type: ignore[index]
            assert question.text.endswith(tuple(asks))
    for one, two in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not seen[one] & seen[two]
        assert not set(FACT_ASKS[one]) & set(FACT_ASKS[two])  # type: ignore[index]
    assert not {ask for asks in ASKS["narrow"].values() for ask in asks} & set(FACT_ASKS["train"])


def test_what_cannot_be_drawn_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no task 'sing'; choose one of advice, abstain"):
        task_rows("sing", None, 3, seed=0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no narrow domain 'music'"):
        task_questions("short", "test", "general", "music")
    monkeypatch.setattr("treft.organism.world.MAX_DRAWS", 1)  # gives up sooner
    with pytest.raises(ConfigError, match="ask for fewer"):
        task_questions("short", "test", "in_domain", num=10**6)
