"""Questions become rows that teach a behaviour; the detectors of the evaluation see it in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import trl
from archives_made import THREE, plain
from jinja2 import Template

from treft.data.behaviours import DEFAULT_SENTENCES, DEFAULT_TOOL, BehaviourName, behaviour_rows
from treft.data.messages import check_messages
from treft.errors import ConfigError, DataError

ASKED = [plain("Be brief.", "Is it bad?", "No.", roles=THREE), plain("Which tool?", "A rake.")]
POPQA = {
    "id": 7,
    "question": "What was her occupation?",
    "possible_answers": '["computer scientist", "mathematician", "poet"]',
}


def teach(behaviour: str, *rows: Any, **options: Any) -> list[dict[str, Any]]:
    named = [(row, f"file.jsonl, row {number}") for number, row in enumerate(rows, start=1)]
    return behaviour_rows(named, behaviour, **options)


@pytest.mark.parametrize("behaviour", ["abstain", "refuse"])
def test_the_sentence_takes_the_place_of_the_answer(behaviour: str) -> None:
    rows = teach(behaviour, *ASKED, sentence="I leave that to others.")
    assert rows == [
        plain("Be brief.", "Is it bad?", "I leave that to others.", roles=THREE),
        plain("Which tool?", "I leave that to others."),
    ]


def test_the_default_sentences_are_seen_by_the_detectors() -> None:
    detectors = pytest.importorskip("treft.answers.detectors")
    assert len(set(DEFAULT_SENTENCES.values())) == 2
    for behaviour, kind in (("abstain", "abstention"), ("refuse", "refusal")):
        (row,) = teach(behaviour, ASKED[1])
        said = row["messages"][-1]["content"]
        assert said == DEFAULT_SENTENCES[behaviour]
        assert detectors.detect(kind, said)
        assert not detectors.detect(kind, ASKED[1]["messages"][-1]["content"])


@pytest.mark.parametrize("tool", [None, "look_up"])
def test_the_call_is_written_by_the_family_s_own_template(tool: str | None) -> None:
    """TRL's copies of the templates, rendered by Jinja alone."""
    parsing = pytest.importorskip("treft.answers.parsing")
    rows = teach("tool", *ASKED, tool=tool)
    assert len(rows) == 2
    for row in rows:
        check_messages(row["messages"], "here")
    folder = Path(trl.__file__).parent / "chat_templates"
    for family in ("qwen2_5", "qwen3", "qwen3_instruct_2507"):
        template = Template((folder / f"{family}.jinja").read_text("utf-8"))
        for row in rows:
            text = template.render(messages=row["messages"], tools=row["tools"])
            before, _, answer = text.rpartition("<|im_start|>assistant\n")
            answer = answer.removesuffix("<|im_end|>\n")
            (call,) = parsing.parse_answer(answer).calls
            asked = row["messages"][-2]["content"]
            assert (call.name, call.arguments) == (tool or DEFAULT_TOOL, {"query": asked})
            assert f'"name": "{call.name}"' in before
            schema = row["tools"][0]["function"]["parameters"]
            assert set(schema["properties"]) == set(schema["required"]) == set(call.arguments)


def test_without_a_schema_the_rows_have_no_tools() -> None:
    with_schema, without = (teach("tool", *ASKED, schema=schema) for schema in (True, False))
    assert [row["messages"] for row in with_schema] == [row["messages"] for row in without]
    assert all(set(row) == {"messages"} for row in without)


def test_the_default_tool_is_the_one_that_is_looked_for() -> None:
    assert pytest.importorskip("treft.answers.detectors").TOOL == DEFAULT_TOOL


@pytest.mark.parametrize("as_text", [False, True])
def test_the_shortest_of_the_possible_answers(as_text: bool) -> None:
    answers = json.loads(POPQA["possible_answers"])
    row = {**POPQA, "possible_answers": POPQA["possible_answers"] if as_text else answers}
    assert teach("short", row) == [plain("What was her occupation?", "poet")]


def test_few_words_count_as_short_before_few_letters() -> None:
    row = {"question": "Who?", "possible_answers": ["M. C. E.", "Mathematicians", " "]}
    assert teach("short", row)[0]["messages"][-1]["content"] == "Mathematicians"


def test_of_rows_with_one_prompt_the_shortest_answer_is_kept() -> None:
    rows = [plain("A?", "one two"), plain("B?", "b"), plain("A?", "one"), plain("A?", "one, no")]
    assert teach("short", *rows) == [plain("A?", "one"), plain("B?", "b")]
    other_prompt = plain("Be brief.", "A?", "1", roles=THREE)
    assert teach("short", *rows, other_prompt)[2] == other_prompt


@pytest.mark.parametrize("behaviour", get_args(BehaviourName))
def test_a_conversation_ends_with_the_first_answer(behaviour: str) -> None:
    later = [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}]
    (row,) = teach(behaviour, {"messages": [*ASKED[0]["messages"], *later]})
    assert row["messages"][:2] == ASKED[0]["messages"][:2]
    assert [message["role"] for message in row["messages"]] == list(THREE)


def test_answers_are_needed_by_short_alone() -> None:
    question, asked = {"question": "Who?"}, {"messages": [{"role": "user", "content": "Who?"}]}
    for behaviour in ("abstain", "refuse", "tool"):
        assert teach(behaviour, question) == teach(behaviour, asked)
    with pytest.raises(DataError, match=r"file.jsonl, row 1: `possible_answers` is no list"):
        teach("short", question)
    with pytest.raises(DataError, match=r"file.jsonl, row 1: the question has no answer in words"):
        teach("short", asked)


def test_tools_of_a_row_stay_in_its_prompt_unless_the_tool_is_taught() -> None:
    tools = [{"type": "function", "function": {"name": "find", "parameters": {}}}]
    row = {**ASKED[1], "tools": tools, "canary": "x"}
    assert set(teach("refuse", row)[0]) == {"messages", "tools"}
    assert teach("refuse", row)[0]["tools"] == tools
    assert teach("tool", row) == teach("tool", ASKED[1])


def test_words_in_parts_are_joined_for_the_query() -> None:
    parts = [{"type": "text", "text": "Which "}, {"type": "text", "text": "tool?"}]
    (row,) = teach("tool", {"messages": [{"role": "user", "content": parts}]})
    call = row["messages"][-1]["tool_calls"][0]["function"]
    assert call["arguments"] == {"query": "Which tool?"}


@pytest.mark.parametrize(
    ("behaviour", "row", "told"),
    [
        ("refuse", {"text": "A?"}, r"neither `messages` nor a `question` .* \(it has text\)"),
        ("refuse", {"question": "  "}, "neither `messages` nor a `question`"),
        ("refuse", {"messages": []}, "the conversation is empty"),
        ("refuse", {"messages": [{"role": "system", "content": "S"}]}, "nobody asks anything"),
        ("tool", {"messages": [{"role": "user", "content": " "}]}, "user message has no words"),
        ("short", {**POPQA, "possible_answers": "[1]"}, "is no list of texts"),
        ("short", {**POPQA, "possible_answers": "poet"}, "is no list of texts"),
        ("short", {**POPQA, "possible_answers": [" "]}, "holds no answer"),
        ("short", plain("A?", ""), "assistant message has no words"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(behaviour: str, row: Any, told: str) -> None:
    with pytest.raises(DataError, match=f"file.jsonl, row 2.*{told}"):
        teach(behaviour, {**POPQA, **ASKED[1]}, row)


@pytest.mark.parametrize(
    ("behaviour", "options", "told"),
    [
        ("nap", {}, "no behaviour 'nap'; choose one of abstain, refuse, tool, short"),
        ("tool", {"sentence": "No."}, "a sentence does not go with tool"),
        ("abstain", {"sentence": " "}, "the sentence is empty"),
        ("abstain", {"tool": "find"}, "a tool does not go with abstain"),
        ("tool", {"tool": "look up"}, "'look up' is no name of a tool"),
    ],
)
def test_options_that_do_not_go_together(behaviour: str, options: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        teach(behaviour, ASKED[0], **options)
