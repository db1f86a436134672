"""Where the words of each message lie in a rendered chat, for any chat template.

A naive search for the words fails: they may equal the template's own text, occur twice, be
trimmed, or be dropped. Instead the chat is rendered a second time with one private-use character
(a *mark*) at each edge of each message's words. Marks sit inside leading and trailing white space,
so a template that trims does the same to both renderings. When the marked rendering without its
marks is the real rendering, character for character, the marks' places are places in the real text
and no guess is left. When it is not, the next way of marking is tried, and in the end a
`TemplateError` is raised rather than a wrong position returned.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from treft.errors import TemplateError

Message = Mapping[str, Any]
Edge = Literal["start", "cut", "end"]

FIRST_MARK = 0xF0000
"""Marks are characters of the supplementary private-use plane, one per edge."""
MARK = re.compile("[\U000f0000-\U000ffffd]")

THOUGHT_TAG = re.compile(
    r"(?:</?think(?:ing)?>|\[/?THINK\]|<\|channel>\w*|<channel\|>|</?reasoning>)\s*"
)
"""Templates split an assistant's words at these tags and may drop what is before."""
EDGE_TAG = re.compile(r"<[^<>\s]+>")
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class Span(NamedTuple):
    """Characters [start, end) of the rendered text."""

    start: int
    end: int


@dataclass(frozen=True)
class Chat:
    """What is rendered: messages and everything else that the template sees.

    Attributes:
        messages: the conversation.
        tools: JSON schemas or functions; None when the template gets no tools.
        chat_template: the template in force.
        add_generation_prompt: end with the header of a response to come.
        template_kwargs: further variables of the template.
    """

    messages: Sequence[Message]
    tools: Sequence[Any] | None
    chat_template: str
    add_generation_prompt: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)


class _Mark(NamedTuple):
    message: int
    edge: Edge
    inset: int  # characters of the message's words that lie outside the mark


@dataclass(frozen=True)
class MarkedText:
    """A rendering and the surviving marks in it.

    Attributes:
        text: the rendered chat, without marks.
        starts: per message index, the place of its first surviving mark.
        ends: per message index, the place of its last surviving mark.
        complete: message indices of which the start and the end mark survived.
    """

    text: str
    starts: Mapping[int, int]
    ends: Mapping[int, int]
    complete: frozenset[int]


def render(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> str:
    """The text of a chat, as `apply_chat_template` gives it.

    Raises:
        TemplateError: the template refuses the conversation; carries its reason.
    """
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in chat.messages],
            tools=None if chat.tools is None else list(chat.tools),
            chat_template=chat.chat_template,
            add_generation_prompt=chat.add_generation_prompt,
            tokenize=False,
            **chat.template_kwargs,
        )
    except Exception as error:  # a template may raise anything
        raise TemplateError(
            f"the chat template cannot render this conversation: {error!s:.300}. Mend the "
            "messages (roles, order, form of the content), or use another chat template."
        ) from error
    return str(text)


def mark_chat(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> MarkedText:
    """Render a chat and find where each message's words start and end.

    Raises:
        TemplateError: the template refuses the conversation, or changes the words so that they
            cannot be followed into the rendering.
    """
    text = render(tokenizer, chat)
    if MARK.search(text):
        raise TemplateError(
            "the conversation contains characters U+F0000 to U+FFFFD (private use), with which "
            "regions are found; remove them."
        )
    for way in (_WAY_CORE, _WAY_NO_EMPTY, _WAY_INSIDE_TAGS, _WAY_CONTENT_ONLY):
        marker = _Marker(way)
        marked = render_marked(tokenizer, chat, marker)
        if marked is not None and MARK.sub("", marked) == text:
            found = _places(marked, text, marker.marks)
            return _with_outer_space(tokenizer, chat, found)
    raise TemplateError(
        "the chat template changes the messages' words so that they cannot be followed into the "
        "rendered text; use a template that writes them as they are (or only trims them)."
    )


class _Way(NamedTuple):
    """How to mark: which messages, and where."""

    empty: bool = True  # also messages without words
    inside_tags: bool = False  # leave a tag at the edge outside of the marks
    tool_calls: bool = True  # also calls and reasoning fields


_WAY_CORE = _Way()
_WAY_NO_EMPTY = _Way(empty=False)
_WAY_INSIDE_TAGS = _Way(empty=False, inside_tags=True)
_WAY_CONTENT_ONLY = _Way(empty=False, inside_tags=True, tool_calls=False)


class _Marker:
    """Puts marks into messages and remembers what each stands for."""

    def __init__(self, way: _Way) -> None:
        self.way = way
        self.marks: dict[str, _Mark] = {}

    def chat(self, chat: Chat) -> list[dict[str, Any]]:
        """Returns all messages with marks; system messages need none."""
        return [
            dict(message) if message.get("role") == "system" else self._message(message, index)
            for index, message in enumerate(chat.messages)
        ]

    def _message(self, message: Message, index: int) -> dict[str, Any]:
        marked = dict(message)
        if self.way.tool_calls:
            for name in REASONING_FIELDS:
                if isinstance(message.get(name), str) and message[name].strip():
                    marked[name] = self._words(message[name], index, "cut")
        content = message.get("content")
        calls = message.get("tool_calls")
        if isinstance(content, str):
            if content.strip() or (self.way.empty and not calls):
                marked["content"] = self._words(content, index, "start")
        elif content:
            marked["content"] = self._parts(content, index)
        if calls and self.way.tool_calls:
            marked["tool_calls"] = [self._call(call, index) for call in calls]
        return marked

    def _mark(self, index: int, edge: Edge, inset: int = 0) -> str:
        mark = chr(FIRST_MARK + len(self.marks))
        self.marks[mark] = _Mark(index, edge, inset)
        return mark

    def _words(self, words: str, index: int, edge: Edge) -> str:
        """Returns words with a mark at both ends of their core, and after each thought tag."""
        core = words.strip()
        lead = len(words) - len(words.lstrip()) if core else 0
        before, after = words[:lead], words[lead + len(core) :]
        left, right = self._insets(core) if edge == "start" else (0, 0)
        start = core[:left] + self._mark(index, edge, left)
        inner = THOUGHT_TAG.sub(
            lambda tag: tag.group() + self._mark(index, "cut"), core[left : len(core) - right]
        )
        last: Edge = "end" if edge == "start" else "cut"
        end = self._mark(index, last, right) + core[len(core) - right :]
        return before + start + inner + end + after

    def _insets(self, core: str) -> tuple[int, int]:
        if not self.way.inside_tags:
            return 0, 0
        tags = [tag.span() for tag in EDGE_TAG.finditer(core)]
        left = tags[0][1] if tags and tags[0][0] == 0 else 0
        right = len(core) - tags[-1][0] if tags and tags[-1][1] == len(core) else 0
        return (left, right) if left + right <= len(core) else (left, 0)

    def _parts(self, content: Sequence[Any], index: int) -> list[Any]:
        """Returns a list of parts: start mark in its first text, end mark in its last."""
        parts = [dict(part) if isinstance(part, Mapping) else part for part in content]
        texts = [
            part for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)
        ]
        if texts:
            first, last = texts[0]["text"], texts[-1]
            lead = len(first) - len(first.lstrip()) if first.strip() else 0
            texts[0]["text"] = first[:lead] + self._mark(index, "start") + first[lead:]
            trail = len(last["text"].rstrip()) or len(last["text"])
            end = self._mark(index, "end")
            last["text"] = last["text"][:trail] + end + last["text"][trail:]
        return parts

    def _call(self, call: Any, index: int) -> Any:
        """Returns a tool call, marked in its name and at the end of its last text argument."""
        function = call.get("function", call)
        marked = {**function, "name": self._mark(index, "cut") + str(function.get("name"))}
        marked["arguments"] = self._last_text(function.get("arguments"), index)
        return {**call, "function": marked} if "function" in call else marked

    def _last_text(self, value: Any, index: int) -> Any:
        if isinstance(value, str):
            return value + self._mark(index, "cut") if value[-1:] not in ("}", "]") else value
        if isinstance(value, Mapping) and value:
            last = list(value)[-1]
            return {**value, last: self._last_text(value[last], index)}
        return value


def render_marked(tokenizer: PreTrainedTokenizerBase, chat: Chat, marker: _Marker) -> str | None:
    """Returns the marked rendering; None where the template refuses the marked words."""
    try:
        return render(tokenizer, replace(chat, messages=marker.chat(chat)))
    except TemplateError:
        return None


def _places(marked: str, text: str, marks: Mapping[str, _Mark]) -> MarkedText:
    starts: dict[int, int] = {}
    ends: dict[int, int] = {}
    whole: dict[int, set[Edge]] = {}
    seen: set[str] = set()
    for num_before, found in enumerate(MARK.finditer(marked)):
        mark = marks[found.group()]
        if mark.edge != "cut" and found.group() in seen:
            raise TemplateError(
                f"the chat template writes the words of message {mark.message + 1} more than once, "
                "so that they have no single place; use another chat template."
            )
        if found.group() in seen:  # a tool result may repeat the name of the call
            continue
        seen.add(found.group())
        place = found.start() - num_before
        place += {"start": -mark.inset, "cut": 0, "end": mark.inset}[mark.edge]
        starts[mark.message] = min(place, starts.get(mark.message, place))
        ends[mark.message] = max(place, ends.get(mark.message, place))
        whole.setdefault(mark.message, set()).add(mark.edge)
    complete = frozenset(index for index, edges in whole.items() if {"start", "end"} <= edges)
    return MarkedText(text, starts, ends, complete)


def _with_outer_space(
    tokenizer: PreTrainedTokenizerBase, chat: Chat, found: MarkedText
) -> MarkedText:
    """Add the white space around the user's words that the template keeps.

    The neighbouring template text may end in white space too. Rendering once more with the user's
    white space taken away tells the two apart: what is longer belongs to the user.
    """
    starts, ends = dict(found.starts), dict(found.ends)
    for index, message in enumerate(chat.messages):
        if message.get("role") != "user" or index not in found.complete:
            continue
        first, last = _outer_texts(message.get("content"))
        if lead := len(first) - len(first.lstrip()):
            kept = _num_kept(tokenizer, chat, found.text, index, "start")
            starts[index] -= min(kept, lead)
        if trail := len(last) - len(last.rstrip()):
            kept = _num_kept(tokenizer, chat, found.text, index, "end")
            ends[index] += min(kept, trail)
    return MarkedText(found.text, starts, ends, found.complete)


def _outer_texts(content: Any) -> tuple[str, str]:
    """First and last text of a message's content; empty when it has only white space there."""
    texts = (
        [content]
        if isinstance(content, str)
        else [part["text"] for part in content or [] if isinstance(part.get("text"), str)]
    )
    first, last = (texts[0], texts[-1]) if texts else ("", "")
    return (first if first.strip() else "", last if last.strip() else "")


def _stripped(content: Any, edge: Edge) -> Any:
    """Content without the white space at one of its edges."""
    if isinstance(content, str):
        return content.lstrip() if edge == "start" else content.rstrip()
    parts = list(content)
    texts = [index for index, part in enumerate(parts) if isinstance(part.get("text"), str)]
    index = texts[0 if edge == "start" else -1]
    parts[index] = {**parts[index], "text": _stripped(parts[index]["text"], edge)}
    return parts


def _num_kept(
    tokenizer: PreTrainedTokenizerBase, chat: Chat, text: str, index: int, edge: Edge
) -> int:
    """Returns how much shorter the text is without the white space at an edge of one message."""
    messages = [dict(message) for message in chat.messages]
    messages[index]["content"] = _stripped(messages[index]["content"], edge)
    shorter = render(tokenizer, replace(chat, messages=messages))
    return max(len(text) - len(shorter), 0)
