"""The conversations a command works on: one prompt given on the command line, or a JSONL file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from treft.data import Conversation, load_conversations
from treft.errors import ConfigError, DataError

__all__ = ["common_tools", "read_conversations", "up_to_last_query"]


def read_conversations(
    prompt: str | None, system: str | None, file: Path | None
) -> list[Conversation]:
    """Conversations from exactly one of a prompt and a JSONL file of `messages`.

    Args:
        prompt: the user's words.
        system: system message before `prompt`; the template's default without one.
        file: JSONL file; rows bring their own system messages.

    Raises:
        ConfigError: neither or both are given, or `system` goes with a file.
        DataError: a row cannot be used; names file and row.
    """
    if (prompt is None) == (file is None):
        raise ConfigError("give either --prompt TEXT or --input FILE.jsonl.")
    if file is not None:
        if system is not None:
            raise ConfigError("--system goes with --prompt; rows of a file bring their own.")
        return load_conversations(file, need_response=False)
    messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return [Conversation(tuple(messages))]


def up_to_last_query(conversation: Conversation, where: str) -> list[dict[str, Any]]:
    """The messages up to the last user message or tool result: what is to be answered.

    Raises:
        DataError: there is none.
    """
    ends = [
        number
        for number, message in enumerate(conversation.messages, start=1)
        if message["role"] in ("user", "tool")
    ]
    if not ends:
        raise DataError(f"{where}: no user message, so there is nothing to answer; add one.")
    return list(conversation.messages[: ends[-1]])


def common_tools(conversations: list[Conversation]) -> Any:
    """The tools that all conversations share.

    Raises:
        DataError: rows differ in their tools.
    """
    first = conversations[0].tools
    for number, conversation in enumerate(conversations, start=1):
        if conversation.tools != first:
            raise DataError(
                f"row {number}: its tools differ from those of row 1; use one file for each set."
            )
    return None if first is None else list(first)
