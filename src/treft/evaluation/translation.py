"""Between Inspect's messages and what a chat template takes, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageTool,
    Content,
    ContentReasoning,
    ContentText,
    Logprob,
    Logprobs,
    TopLogprob,
)
from inspect_ai.tool import ToolCall, ToolInfo
from transformers import PreTrainedTokenizerBase

from treft.answers.parsing import ParsedAnswer, parse_answer, split_thoughts
from treft.errors import DataError
from treft.models.sampling import Drawn


def template_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Messages as a chat template takes them; thoughts of earlier turns are left out.

    Raises:
        DataError: a message is more than text.
    """
    return [_template_message(message, number) for number, message in enumerate(messages, start=1)]


def template_tools(tools: Sequence[ToolInfo]) -> list[dict[str, Any]] | None:
    """Tools as JSON schemas of functions; None for none."""
    schemas = [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters.model_dump(exclude_none=True),
            },
        }
        for tool in tools
    ]
    return schemas or None


def assistant_message(
    written: str, plain: str, tools: Sequence[ToolInfo], model: str, call_id: str
) -> ChatMessageAssistant:
    """The answer with its thoughts and, if tools were offered, its calls apart from its words.

    Args:
        written: the decoded tokens with their special tokens.
        plain: without them.
        tools: what was offered.
        model: name of the model.
        call_id: first eight characters of the calls' ids (nine in all: what Mistral takes).
    """
    if tools:
        parsed = parse_answer(written, [tool.name for tool in tools])
    else:
        thoughts, words = split_thoughts(written)
        parsed = ParsedAnswer(words, thoughts)
    is_whole = not parsed.thoughts and not parsed.calls and parsed.text == written
    text = plain if is_whole else parsed.text
    content: list[Content] = [ContentText(text=text)]
    if parsed.thoughts:
        content.insert(0, ContentReasoning(reasoning=parsed.thoughts))
    calls = [
        ToolCall(id=f"{call_id}{number % 10}", function=call.name, arguments=call.arguments)
        for number, call in enumerate(parsed.calls)
    ]
    return ChatMessageAssistant(
        content=content if parsed.thoughts else text,
        tool_calls=calls or None,
        model=model,
        source="generate",
    )


def logprobs_of(drawn: Sequence[Drawn], tokenizer: PreTrainedTokenizerBase) -> Logprobs:
    """Log-probabilities of an answer's tokens, most probable alternatives first."""

    def text(token_id: int) -> str:
        return str(tokenizer.decode([token_id]))

    return Logprobs(
        content=[
            Logprob(
                token=text(token.token_id),
                logprob=token.logprob,
                top_logprobs=[
                    TopLogprob(token=text(token_id), logprob=logprob)
                    for token_id, logprob in token.top
                ],
            )
            for token in drawn
        ]
    )


def _template_message(message: ChatMessage, number: int) -> dict[str, Any]:
    if isinstance(message.content, list):
        kinds = {part.type for part in message.content} - {"text", "reasoning"}
        if kinds:
            raise DataError(
                f"message {number} has {', '.join(sorted(kinds))}; treft models take text only."
            )
    found: dict[str, Any] = {"role": message.role, "content": message.text}
    if isinstance(message, ChatMessageAssistant) and message.tool_calls:
        found["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if isinstance(message, ChatMessageTool):
        found |= {"name": message.function, "tool_call_id": message.tool_call_id}
    return found
