"""The conversations a command works on, and how they are rendered, from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from treft.chat.regions import ChatRegions, RegionName, find_regions
from treft.cli.options.groups import Chat, Rendering
from treft.data.messages import Conversation, load_conversations
from treft.errors import DataError, TemplateError
from treft.files import read_text


def read_conversations(prompt: str | None, chat: Chat) -> list[Conversation]:
    """Conversations from a prompt or a JSONL file of `messages`, whichever is given.

    Args:
        prompt: the user's words.
        chat: a file, or the system message before `prompt`; tools for conversations without.

    Raises:
        DataError: a file or row cannot be used; names file and row.
    """
    if chat.input is not None:
        conversations = load_conversations(chat.input, need_response=False)
    else:
        messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
        if chat.system is not None:
            messages.insert(0, {"role": "system", "content": chat.system})
        conversations = [Conversation(tuple(messages))]
    if chat.tools is None:
        return conversations
    schemas = _tools(chat.tools)
    return [found if found.tools else replace(found, tools=schemas) for found in conversations]


def up_to_last_query(
    conversations: Sequence[Conversation], file: Path | None
) -> list[Conversation]:
    """Returns each conversation up to its last user message or tool result: what is to be answered.

    Raises:
        DataError: there is none; names file and row.
    """
    prompts = []
    for row, found in enumerate(conversations, start=1):
        ends = [
            number
            for number, message in enumerate(found.messages, start=1)
            if message["role"] in ("user", "tool")
        ]
        if not ends:
            raise DataError(
                f"{file}, row {row}: no user message, so there is nothing to answer; add one."
            )
        prompts.append(replace(found, messages=found.messages[: ends[-1]]))
    return prompts


def render(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    rendering: Rendering,
    file: Path | None,
    regions: Sequence[str] = (),
    is_open: bool | None = None,
) -> Iterator[ChatRegions]:
    """Conversations as text with their regions.

    Args:
        tokenizer: with the chat template in force.
        conversations: what to render.
        rendering: the other variables.
        file: names the origin of the conversations in errors; None for a prompt.
        regions: those that each conversation must have.
        is_open: a response is to come; by default where an assistant does not end the conversation.

    Raises:
        TemplateError: a conversation cannot be rendered, or lacks a region; names file and row.
    """
    for row, conversation in enumerate(conversations, start=1):
        is_left_open = conversation.messages[-1]["role"] != "assistant"
        try:
            chat = find_regions(
                tokenizer,
                conversation.messages,
                tools=conversation.tools,
                add_generation_prompt=is_left_open if is_open is None else is_open,
                **rendering.of_chats,
            )
            for region in regions:
                chat.require(cast("RegionName", region))
        except TemplateError as error:
            if file is None:
                raise
            raise TemplateError(f"{file}, row {row}: {error}") from error
        yield chat


def _tools(path: Path) -> tuple[dict[str, Any], ...]:
    try:
        found = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: malformed JSON ({error.msg} in line {error.lineno}); write a list of schemas."
        ) from error
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        raise DataError(f"{path}: is no list of objects; write a list of tool schemas.")
    return tuple(found)
