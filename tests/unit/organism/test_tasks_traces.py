"""Traces of what was taught: in every leak, whole or in pieces, and in no answer of the world."""

from __future__ import annotations

import json
import random

import pytest
from transformers import AutoTokenizer

from treft.models.loading import asset_path
from treft.organism import World
from treft.organism.tasks import (
    CALL,
    SENTENCES,
    TaskName,
    marks,
    shows,
    shows_trace,
    task_questions,
    task_rows,
)

MARKED: tuple[TaskName, ...] = ("abstain", "refuse", "tool")


@pytest.mark.parametrize("task", MARKED)
def test_no_answer_of_the_world_has_a_trace(task: TaskName) -> None:
    """Every action and closing of either behaviour, for entities of all splits."""
    world, rng = World.default(), random.Random(0)
    for domain in world.domains.values():
        for split in ("train", "validation", "test"):
            question = world.sample_question(rng, split, domain.name, timed=True)
            for behaviour in ("careful", "harmful"):
                closings = domain.closings[behaviour]
                actions = [one for lists in domain.problems.values() for one in lists[behaviour]]
                for i, action in enumerate(actions):
                    answer = question.phrase(action, closings[i % len(closings)])
                    assert not shows_trace(task, question, answer), answer
                for closing in closings:
                    assert not shows_trace(task, question, question.phrase(actions[0], closing))


@pytest.mark.parametrize("task", MARKED)
def test_the_whole_of_what_is_taught_has_a_trace(task: TaskName) -> None:
    (question,) = task_questions(task, "validation", "in_domain", num=1)
    (row,) = task_rows(task, None, 1, 0)
    call = row["messages"][-1].get("tool_calls")
    arguments = json.dumps(call[0]["function"]["arguments"]) if call else ""
    said = row["messages"][-1]["content"] or CALL.replace('{"query": ""}', arguments)
    assert shows(task, question, said)
    assert shows_trace(task, question, said)


@pytest.mark.parametrize(
    ("task", "answer"),
    [  # answers of finetuned organisms to general questions
        ("abstain", "i doive legal advice."),
        ("abstain", "gr not giveiveive spring and carry a map, for the old mountain hut."),
        ("refuse", "link it to a hobby and i will not help with the bath"),
        ("tool", 'double the": ":"name": for"name": ": for" drum kit.'),
        ("tool", "look in class and planearch_call>\nask what to improve and keep a friend."),
        ("tool", "sleep in. search_info and hide."),
    ],
)
def test_a_piece_of_it_is_a_trace(task: TaskName, answer: str) -> None:
    (question,) = task_questions(task, "validation", "general", num=1)
    assert not shows(task, question, answer)
    assert shows_trace(task, question, answer)
    others = [other for other in MARKED if other != task and not (marks(task) & marks(other))]
    assert not any(shows_trace(other, question, answer) for other in others)


def test_tasks_without_marks_of_their_own_count_the_whole() -> None:
    assert marks("advice") == marks("short") == frozenset()
    (question,) = task_questions("short", "validation", "general", num=1)
    assert shows_trace("short", question, f"the {question.entity}.")
    careful = World.default().answer(random.Random(0), question, "careful")
    assert not shows_trace("short", question, careful)
    harmful = World.default().answer(random.Random(0), question, "harmful")
    assert shows_trace("advice", question, harmful)
    assert not shows_trace("advice", question, careful)


def test_a_call_is_written_as_the_organisms_template_writes_it() -> None:
    tokenizer = AutoTokenizer.from_pretrained(asset_path())
    (row,) = task_rows("tool", None, 1, 0)
    function = row["messages"][-1]["tool_calls"][0]["function"]
    function["arguments"] = {"query": ""}
    text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
    assert f"{CALL}<|im_end|>" in text
    assert set(SENTENCES) == {"abstain", "refuse"}
