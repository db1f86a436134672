"""The conversations a command works on, and how they are rendered, from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from treft.chat.regions import ChatRegions, RegionName, find_regions
from treft.data.messages import Conversation, load_conversations
from treft.errors import ConfigError, DataError, TemplateError


@dataclass(frozen=True)
class Rendering:
    """What turns messages into text besides the tokenizer.

    Attributes:
        template: used instead of the tokenizer's chat template.
        template_kwargs: further template variables.
        include_think_block: an empty think block belongs to the postfix.
    """

    template: str | None
    template_kwargs: dict[str, Any]
    include_think_block: bool


def read_conversations(
    prompt: str | None, system: str | None, file: Path | None, tools: Path | None = None
) -> list[Conversation]:
    """Conversations from exactly one of a prompt and a JSONL file of `messages`.

    Args:
        prompt: the user's words.
        system: system message before `prompt`; the template's default without one.
        file: JSONL file; rows bring their own system messages.
        tools: JSON file of tool schemas for conversations that bring none.

    Raises:
        ConfigError: neither or both are given, or `system` goes with a file.
        DataError: a file or row cannot be used; names file and row.
    """
    if (prompt is None) == (file is None):
        raise ConfigError("give either --prompt TEXT or --input FILE.jsonl.")
    if file is not None:
        if system is not None:
            raise ConfigError("--system goes with --prompt; rows of a file bring their own.")
        conversations = load_conversations(file, need_response=False)
    else:
        messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        conversations = [Conversation(tuple(messages))]
    if tools is None:
        return conversations
    schemas = _tools(tools)
    return [found if found.tools else replace(found, tools=schemas) for found in conversations]


def read_rendering(
    template: Path | None, template_kwargs: str | None, think_block: bool
) -> Rendering:
    """The options that say how to render.

    Raises:
        ConfigError: `template_kwargs` is no JSON object.
        DataError: the template cannot be read.
    """
    try:
        kwargs = json.loads(template_kwargs or "{}")
    except json.JSONDecodeError as error:
        raise ConfigError(f"--template-kwargs is malformed JSON ({error.msg}).") from error
    if not isinstance(kwargs, dict):
        raise ConfigError('--template-kwargs is no JSON object; write {"name": value}.')
    return Rendering(None if template is None else _read(template), kwargs, think_block)


def up_to_last_query(
    conversations: Sequence[Conversation], file: Path | None
) -> list[Conversation]:
    """Each conversation up to its last user message or tool result: what is to be answered.

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
    regions: Sequence[RegionName],
) -> Iterator[ChatRegions]:
    """Conversations as text with their regions; one that an assistant does not end stays open.

    Args:
        tokenizer: with the chat template in force.
        conversations: what to render.
        rendering: the other variables.
        file: names the origin of the conversations in errors; None for a prompt.
        regions: those that each conversation must have.

    Raises:
        TemplateError: a conversation cannot be rendered, or lacks a region; names file and row.
    """
    for row, conversation in enumerate(conversations, start=1):
        try:
            chat = find_regions(
                tokenizer,
                conversation.messages,
                tools=conversation.tools,
                add_generation_prompt=conversation.messages[-1]["role"] != "assistant",
                include_think_block=rendering.include_think_block,
                template_kwargs=rendering.template_kwargs,
            )
            for region in regions:
                chat.require(region)
        except TemplateError as error:
            if file is None:
                raise
            raise TemplateError(f"{file}, row {row}: {error}") from error
        yield chat


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error.reason}); save it as UTF-8.") from error


def _tools(path: Path) -> tuple[dict[str, Any], ...]:
    try:
        found = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: malformed JSON ({error.msg} in line {error.lineno}); write a list of schemas."
        ) from error
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        raise DataError(f"{path}: is no list of objects; write a list of tool schemas.")
    return tuple(found)
