"""Read conversations and check them before any compute is spent.

One row is `{"messages": [{"role": ..., "content": ...}, ...], "tools": [...]}`; `tools` and further
columns are optional. Every error names the file, the row (lines are counted from 1) and the mend.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treft.errors import DataError
from treft.files import read_text

ROLES = ("system", "developer", "user", "assistant", "tool")
FOLLOWERS: dict[str, tuple[str, ...]] = {
    "": ("system", "developer", "user"),
    "system": ("user",),
    "developer": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "calling assistant": ("tool",),
    "tool": ("tool", "assistant"),
}
"""Roles that may come after each role; "" is the beginning."""


@dataclass(frozen=True)
class Conversation:
    """One checked row.

    Attributes:
        messages: system (optional, first), then user and assistant in turn; tool results follow an
            assistant's tool calls.
        tools: JSON schemas of the tools the assistant may call; None when the row has none.
    """

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] | None = None


def load_conversations(path: str | Path, *, need_response: bool = True) -> list[Conversation]:
    """Read and check a JSONL file.

    Args:
        path: the file.
        need_response: rows without an assistant message are refused (training data).

    Raises:
        DataError: the file is missing or empty, or a row cannot be used; names file and row.
    """
    rows = read_rows(Path(path))
    return [_conversation(row, where, need_response) for row, where in rows]


def load_messages(path: str | Path) -> list[dict[str, Any]]:
    """Read and check a JSONL file; the rows as they are, for `datasets.Dataset.from_list`.

    Raises:
        DataError: as `load_conversations`.
    """
    rows = read_rows(Path(path))
    for row, where in rows:
        _conversation(row, where)
    return [row for row, _ in rows]


def check_messages(messages: Any, where: str, *, need_response: bool = True) -> None:
    """Check one conversation.

    Args:
        messages: the value of a row's `messages`.
        where: how errors name the row.
        need_response: the conversation must have an assistant message (training data).

    Raises:
        DataError: it is no list, is empty, has a bad message, roles out of order, or no assistant
            message.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise DataError(
            f"{where}: `messages` is {_kind(messages)}, not a list; write a list of "
            '{"role": ..., "content": ...}.'
        )
    if not messages:
        raise DataError(f"{where}: the conversation is empty; add messages or drop the row.")
    for number, message in enumerate(messages, start=1):
        _check_message(message, f"{where}, message {number}")
    _check_order(messages, where)
    if need_response and not any(message["role"] == "assistant" for message in messages):
        raise DataError(
            f"{where}: no assistant message, so there is nothing to learn; add one or drop the row."
        )


def read_rows(path: Path) -> list[tuple[dict[str, Any], str]]:
    """Returns the JSON objects of a JSONL file, each with the words that name its row in errors.

    Raises:
        DataError: the file is missing, empty or not UTF-8, or a row is no JSON object.
    """
    return parse_rows(read_text(path), str(path))


def parse_rows(text: str, source: str) -> list[tuple[dict[str, Any], str]]:
    """Returns the JSON objects of JSONL text, each with the words that name its row in errors.

    Args:
        text: one JSON object a line.
        source: how errors name where the text comes from.

    Raises:
        DataError: there is no row, or one is no JSON object.
    """
    rows = [
        (_parse(line, f"{source}, row {number}"), f"{source}, row {number}")
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    if not rows:
        raise DataError(f"{source}: has no rows; write one JSON object a line.")
    return rows


def _parse(line: str, where: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise DataError(
                f"{where}: the key {doubled[0]!r} occurs twice in one object; keep one of them."
            )
        return dict(pairs)

    try:
        row = json.loads(line, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: malformed JSON ({error.msg} at character {error.pos + 1}); write one JSON "
            "object a line."
        ) from error
    except RecursionError as error:
        raise DataError(f"{where}: JSON is nested too deeply; flatten or drop the row.") from error
    if not isinstance(row, dict):
        raise DataError(f'{where}: is {_kind(row)}, not an object; write {{"messages": [...]}}.')
    return row


def _conversation(row: Mapping[str, Any], where: str, need_response: bool = True) -> Conversation:
    if not isinstance(row, Mapping):
        raise DataError(f'{where}: is {_kind(row)}, not an object; write {{"messages": [...]}}.')
    if row.get("messages") is None:
        found = ", ".join(map(str, row)) or "nothing"
        raise DataError(f"{where}: has no `messages` (it has {found}); add or rename the column.")
    check_messages(row["messages"], where, need_response=need_response)
    return Conversation(
        tuple(dict(message) for message in row["messages"]), _tools(row.get("tools"), where)
    )


def _tools(tools: Any, where: str) -> tuple[dict[str, Any], ...] | None:
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where}: `tools` is malformed JSON ({error.msg}); write a list of schemas."
            ) from error
    if tools is None:
        return None
    if not isinstance(tools, Sequence) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError(f"{where}: `tools` is {_kind(tools)}; write a list of JSON schemas.")
    return tuple(dict(tool) for tool in tools)


def _check_message(message: Any, where: str) -> None:
    if not isinstance(message, Mapping):
        raise DataError(
            f'{where}: is {_kind(message)}, not an object; write {{"role": ..., "content": ...}}.'
        )
    role = message.get("role")
    if role not in ROLES:
        raise DataError(f"{where}: role is {role!r}; use one of {', '.join(ROLES)}.")
    calls = message.get("tool_calls")
    if calls:
        _check_calls(calls, role, where)
    content = message.get("content")
    if content is None:
        if not calls:
            raise DataError(f"{where}: has no content; write text, or drop the message.")
    elif isinstance(content, list):
        _check_parts(content, where)
    elif not isinstance(content, str):
        raise DataError(f"{where}: content is {_kind(content)}, not text; write a string.")


def _check_calls(calls: Any, role: str, where: str) -> None:
    if role != "assistant":
        raise DataError(f"{where}: a {role} message has tool_calls; only assistants call tools.")
    if not isinstance(calls, Sequence) or not all(isinstance(call, Mapping) for call in calls):
        raise DataError(
            f"{where}: tool_calls is {_kind(calls)}; write a list of "
            '{"type": "function", "function": {"name": ..., "arguments": {...}}}.'
        )
    for call in calls:
        function = call.get("function", call)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError(f"{where}: a tool call has no function name; write one.")


def _check_parts(parts: Sequence[Any], where: str) -> None:
    for part in parts:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            raise DataError(
                f"{where}: content is a list with a part that is not text; write parts as "
                '{"type": "text", "text": ...} (images and audio are not supported).'
            )
    if not parts:
        raise DataError(f"{where}: content is an empty list; write text, or drop the message.")


def _check_order(messages: Sequence[Mapping[str, Any]], where: str) -> None:
    previous = ""
    for number, message in enumerate(messages, start=1):
        role = str(message["role"])
        if role not in FOLLOWERS[previous]:
            after = f"after {previous}" if previous else "at the beginning"
            raise DataError(
                f"{where}, message {number}: role {role} {after}; expected "
                f"{' or '.join(FOLLOWERS[previous])}. System comes first only, user and assistant "
                "alternate, tool results follow an assistant's tool_calls."
            )
        previous = "calling assistant" if message.get("tool_calls") else role


def _kind(value: Any) -> str:
    """Returns what a JSON value is, for messages."""
    if value is None:
        return "null"
    return {str: "text", list: "a list", dict: "an object", bool: "true or false"}.get(
        type(value), "a number" if isinstance(value, int | float) else type(value).__name__
    )
