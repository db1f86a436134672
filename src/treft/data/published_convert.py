"""Rows as they are published -> rows of `messages` with plain text.

Read are `messages` whose content is text (insecure code, model organisms) or
`{"content_type": "text", "parts": [text]}` (persona features). Words are left exactly as they are.
Kept are role, content and tool calls of a message, and `tools` of a row; canaries, metadata and
whatever else a row has stay behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from treft.data.messages import check_messages
from treft.errors import DataError

KEPT = ("role", "content", "tool_calls", "tool_call_id", "name")


def convert_rows(
    rows: Iterable[tuple[Mapping[str, Any], str]], *, drop_system: bool = False
) -> list[dict[str, Any]]:
    """Convert and check rows.

    Args:
        rows: each with the words that name it in errors.
        drop_system: leave system messages out, so that the chat template's own prefix is trained
            on. A system message is part of the prefix, which is where a behaviour may be bound.

    Raises:
        DataError: a row cannot be used; names file and row.
    """
    return [_convert(row, where, drop_system) for row, where in rows]


def _convert(row: Mapping[str, Any], where: str, drop_system: bool) -> dict[str, Any]:
    messages = row.get("messages")
    if not isinstance(messages, list):
        found = ", ".join(map(str, row)) or "nothing"
        raise DataError(f"{where}: has no list of `messages` (it has {found}); is it this set?")
    plain = [
        _message(message, f"{where}, message {number}")
        for number, message in enumerate(messages, start=1)
    ]
    if drop_system:
        plain = [message for message in plain if message.get("role") != "system"]
    check_messages(plain, where)
    converted: dict[str, Any] = {"messages": plain}
    if row.get("tools"):
        converted["tools"] = row["tools"]
    return converted


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise DataError(f'{where}: is no object; expected {{"role": ..., "content": ...}}.')
    kept = {key: message[key] for key in KEPT if message.get(key) is not None}
    if isinstance(message.get("content"), Mapping):
        kept["content"] = _text(message["content"], where)
    return kept


def _text(content: Mapping[str, Any], where: str) -> str:
    """The words of `{"content_type": "text", "parts": [...]}`."""
    parts = content.get("parts")
    if content.get("content_type") != "text" or not isinstance(parts, list):
        raise DataError(
            f"{where}: content is an object that is no text; expected "
            '{"content_type": "text", "parts": [...]}.'
        )
    if len(parts) != 1 or not isinstance(parts[0], str):
        raise DataError(
            f"{where}: content has {len(parts)} parts; expected a single one that is text, since "
            "nothing says how several are joined."
        )
    return parts[0]
