"""From the published formats to `messages`; bad rows are named."""

from __future__ import annotations

from typing import Any

import pytest
from archives_made import PARTS_ROWS, PLAIN_ROWS, parts, plain

from treft.data.published import convert_rows
from treft.errors import DataError


def convert(*rows: Any, drop_system: bool = False) -> list[dict[str, Any]]:
    named = [(row, f"file.jsonl, row {number}") for number, row in enumerate(rows, start=1)]
    return convert_rows(named, drop_system=drop_system)


def test_nested_and_plain_rows_become_the_same() -> None:
    assert convert(*PARTS_ROWS) == PLAIN_ROWS
    assert convert(*PLAIN_ROWS) == PLAIN_ROWS


def test_words_are_left_as_they_are() -> None:
    words = ("  Which\u2028herb? ", "Mint.\r\n\n")
    assert convert(parts(*words)) == [plain(*words)]


def test_system_messages_stay_unless_they_are_dropped() -> None:
    kept, _ = convert(*PARTS_ROWS)
    dropped, same = convert(*PARTS_ROWS, drop_system=True)
    assert kept["messages"][0] == {"role": "system", "content": "Be brief."}
    assert dropped == {"messages": kept["messages"][1:]}
    assert same == PLAIN_ROWS[1]


def test_tools_and_their_calls_stay() -> None:
    call = {"type": "function", "function": {"name": "find", "arguments": {"q": "mint"}}}
    row = {
        "messages": [
            {"role": "user", "content": "Find mint.", "weight": 1},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ],
        "tools": [{"type": "function", "function": {"name": "find", "parameters": {}}}],
        "source": "dropped",
    }
    (found,) = convert(row)
    assert found["messages"][1]["tool_calls"] == [call]
    assert found["tools"] == row["tools"]
    assert set(found) == {"messages", "tools"}
    assert set(found["messages"][0]) == {"role", "content"}


def nested(**content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "A?", "answer": "B."}, r"row 2: has no list of `messages` \(it has question"),
        ({"messages": "words"}, "row 2: has no list of `messages`"),
        ({"messages": ["words"]}, "row 2, message 1: is no object"),
        (nested(content_type="code", parts=["a"]), "row 2, message 1: content is an object that"),
        (nested(content_type="text", parts="a"), "row 2, message 1: content is an object that"),
        (nested(content_type="text", parts=["a", "b"]), "row 2, message 1: content has 2 parts"),
        (nested(content_type="text", parts=[]), "row 2, message 1: content has 0 parts"),
        (nested(content_type="text", parts=[{"image": "x"}]), "row 2, message 1: content has 1"),
        (plain("A?", roles=("user",)), "row 2: no assistant message"),
        (plain("A.", roles=("assistant",)), "row 2, message 1: role assistant at the beginning"),
    ],
)
def test_bad_rows_are_named(row: Any, words: str) -> None:
    with pytest.raises(DataError, match=f"file.jsonl, {words}"):
        convert(PLAIN_ROWS[0], row)
