"""Conversations are read and refused with file, row and mend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from treft.data.messages import (
    Conversation,
    check_messages,
    load_conversations,
    load_messages,
)
from treft.errors import DataError

USER = {"role": "user", "content": "Why?"}
ASSISTANT = {"role": "assistant", "content": "So."}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}],
}
TOOL = {"role": "tool", "content": "1"}
GOOD = {"messages": [USER, ASSISTANT]}


def write(folder: Path, *lines: str) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines), "utf-8")
    return path


def test_reads_rows_and_tools(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    rows = [GOOD, {"messages": [USER, CALL, TOOL, TOOL, ASSISTANT], "tools": tools, "id": 7}]
    path = write(tmp_path, json.dumps(rows[0]), "", json.dumps(rows[1]), "")
    first, second = load_conversations(path)
    assert first == Conversation((USER, ASSISTANT), None)
    assert [message["role"] for message in second.messages] == [
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
    ]
    assert second.tools == tuple(tools)
    assert load_messages(path) == rows


def test_words_with_line_separators_stay_one_row(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a\u2028b\x85c"}, ASSISTANT]}
    path = write(tmp_path, json.dumps(row, ensure_ascii=False))
    assert load_messages(path) == [row]


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n")
    assert len(load_conversations(path)) == 1


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"messages": [', "malformed JSON"),
        ("[]", "is a list, not an object"),
        ("3", "is a number, not an object"),
        ('{"conversations": []}', "has no `messages`"),
        ('{"messages": null}', "has no `messages`"),
        ('{"messages": [], "messages": []}', "'messages' occurs twice"),
        ('{"messages": [{"role": "user", "role": "tool"}]}', "'role' occurs twice"),
        ('{"messages": "hello"}', "is text, not a list"),
        ('{"messages": []}', "the conversation is empty"),
        (json.dumps({"messages": [USER, ASSISTANT], "tools": "["}), "`tools` is malformed"),
        (json.dumps({"messages": [USER, ASSISTANT], "tools": [1]}), "`tools` is a list"),
        ("[" * 100_000, "row 2"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, line: str, what: str) -> None:
    path = write(tmp_path, json.dumps(GOOD), line)
    for load in (load_conversations, load_messages):
        with pytest.raises(DataError, match="row 2") as error:
            load(path)
        assert str(path) in str(error.value)
        assert what in str(error.value)


def message(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([USER], "no assistant message"),
        ([message("system", "x"), USER], "no assistant message"),
        ([ASSISTANT, USER], "message 1: role assistant at the beginning"),
        ([USER, USER, ASSISTANT], "message 2: role user after user"),
        ([USER, ASSISTANT, ASSISTANT], "message 3: role assistant after assistant"),
        ([USER, message("system", "x"), ASSISTANT], "message 2: role system after user"),
        ([message("system", "x"), ASSISTANT], "message 2: role assistant after system"),
        ([USER, TOOL, ASSISTANT], "message 2: role tool after user"),
        ([USER, ASSISTANT, TOOL], "message 3: role tool after assistant"),
        ([USER, CALL, ASSISTANT], "message 3: role assistant after calling assistant"),
        ([message("human", "x"), ASSISTANT], "message 1: role is 'human'"),
        ([{"content": "x"}, ASSISTANT], "message 1: role is None"),
        (["Why?", ASSISTANT], "message 1: is text, not an object"),
        ([message("user", 3), ASSISTANT], "message 1: content is a number"),
        ([message("user", {"text": "x"}), ASSISTANT], "message 1: content is an object"),
        ([message("user", None), ASSISTANT], "message 1: has no content"),
        ([USER, message("assistant", None)], "message 2: has no content"),
        ([message("user", []), ASSISTANT], "message 1: content is an empty list"),
        ([message("user", [{"type": "image"}]), ASSISTANT], "part that is not text"),
        ([{**CALL, "role": "user"}, ASSISTANT], "only assistants call tools"),
        ([USER, message("assistant", None, tool_calls="f()")], "tool_calls is text"),
        ([USER, message("assistant", None, tool_calls=[{"id": 1}])], "no function name"),
    ],
)
def test_bad_conversations_say_what_and_where(messages: list[Any], what: str) -> None:
    with pytest.raises(DataError) as error:
        check_messages(messages, "rows.jsonl, row 5")
    assert str(error.value).startswith("rows.jsonl, row 5")
    assert what in str(error.value)
    with pytest.raises(DataError, match="train, row 2"):
        check_messages(messages, "train, row 2")


def test_good_conversations_pass(tmp_path: Path) -> None:
    parts = message("user", [{"type": "text", "text": "Why?"}])
    for messages in (
        [USER, ASSISTANT],
        [message("system", "x"), USER, ASSISTANT, USER, ASSISTANT],
        [message("developer", "x"), parts, ASSISTANT],
        [USER, CALL, TOOL, CALL, TOOL, ASSISTANT],
        [USER, ASSISTANT, USER],
        # a Hugging Face dataset fills fields that a message does not have with None
        [{**USER, "tool_calls": None}, {**ASSISTANT, "tool_calls": None}],
    ):
        check_messages(messages, "here")
    check_messages([USER], "here", need_response=False)
    (checked,) = load_conversations(write(tmp_path, json.dumps({**GOOD, "tools": "[]"})))
    assert checked.tools == ()


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load_conversations(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="has no rows"):
        load_conversations(write(tmp_path, "", "  "))
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(DataError, match="not UTF-8"):
        load_conversations(binary)
