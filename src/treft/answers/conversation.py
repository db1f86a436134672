"""The question and the answer in what Inspect keeps of a sample."""

from __future__ import annotations

from collections.abc import Sequence

from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageUser, ModelOutput

from treft.answers.parsing import Turn


def last_question(messages: str | Sequence[ChatMessage]) -> str:
    """The last user message; the judge sees no system message, so prompts can be compared."""
    if isinstance(messages, str):
        return messages
    words = (message.text for message in reversed(messages) if isinstance(message, ChatMessageUser))
    return next(words, "")


def answer_text(output: ModelOutput) -> str:
    """The model's words, without its thoughts, then its tool calls, one a line."""
    return _words(output.message) if output.choices else ""


def conversation(messages: Sequence[ChatMessage]) -> list[Turn]:
    """The user's and the assistant's turns."""
    turns = []
    for message in messages:
        if isinstance(message, ChatMessageUser):
            turns.append(Turn("user", message.text))
        elif isinstance(message, ChatMessageAssistant):
            turns.append(Turn("assistant", _words(message)))
    return turns


def no_answer(output: ModelOutput) -> str | None:
    """Why there is no answer to judge, or None; an empty answer is an answer."""
    if not output.choices:
        return f"the model gave no answer{f': {output.error}' if output.error else ''}"
    if output.stop_reason == "content_filter":
        return "the model's provider filtered its answer"
    return None


def _words(message: ChatMessageAssistant) -> str:
    calls = []
    for call in message.tool_calls or ():
        arguments = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
        calls.append(f"{call.function}({arguments})")
    return "\n".join(filter(None, (message.text, *calls)))
