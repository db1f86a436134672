"""Where a response starts and ends between two messages, and whether a prefix holds a date.

What a template writes around an assistant's words is learnt once per template from short trial
chats (`frame_of`): the header that a generation prompt adds, and the text that ends a turn.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from transformers import PreTrainedTokenizerBase

from treft.chat.rendering import Chat, MarkedText, Span, mark_chat
from treft.errors import TemplateError

EMPTY_THOUGHT = re.compile(
    r"<think>\s*</think>\s*|\[THINK\]\s*\[/THINK\]\s*|<\|channel>thought\s*<channel\|>\s*"
)
"""Think blocks without a thought, as templates write them before a response."""
EMPTY_THOUGHT_AHEAD = re.compile(rf"\s*(?:{EMPTY_THOUGHT.pattern})")
OPENED_THOUGHT = re.compile(r"\s*(?:<think>|\[THINK\]|<\|channel>).*", re.DOTALL)
CALL_END = re.compile(r"<\|call\|>|<tool_call\|>|</tool_call>|<\|END_ACTION\|>|<\|eom_id\|>")
"""What closes a tool call where the turn itself is not closed (GPT-OSS, Gemma 4, GLM-4)."""
DATE_PINS = {
    "date_string": '{"date_string": "26 Jul 2024"}',
    "current_date": '{"current_date": "2024-07-26"}',
}
FRAMES_KEPT = 64


@dataclass(frozen=True)
class Frame:
    """What a template writes around an assistant's words.

    Attributes:
        header: what a generation prompt adds after the user's turn; "" if the template has none.
        after_user: what follows the user's words without a generation prompt.
        turn_end: what follows the assistant's words up to the end-of-turn token, that included.
        specials: special and added tokens of the tokenizer, as a pattern; None when there are
            none, or when the template writes nothing after the last assistant's words.
    """

    header: str
    after_user: str
    turn_end: str
    specials: re.Pattern[str] | None


_frames: OrderedDict[tuple[Any, ...], Frame] = OrderedDict()


def frame_of(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> Frame:
    """Returns the template's frame around responses; learnt once per template and its variables."""
    in_parts = any(isinstance(message.get("content"), list) for message in chat.messages)
    added = tuple(tokenizer.get_added_vocab())
    key = (
        chat.chat_template,
        repr(sorted(chat.template_kwargs.items())),
        in_parts,
        added,
        tuple(sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items())),
    )
    if key not in _frames:
        _frames[key] = _learn_frame(tokenizer, chat, in_parts, added)
        if len(_frames) > FRAMES_KEPT:
            _frames.popitem(last=False)
    return _frames[key]


def _learn_frame(
    tokenizer: PreTrainedTokenizerBase, chat: Chat, in_parts: bool, added: tuple[str, ...]
) -> Frame:
    def message(role: str, words: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": words}] if in_parts else words}

    def trial(words: list[str], prompt: bool = False) -> MarkedText | None:
        roles = ("user", "assistant", "user")
        messages = [message(role, word) for role, word in zip(roles, words, strict=False)]
        try:
            return mark_chat(
                tokenizer,
                Chat(messages, None, chat.chat_template, prompt, chat.template_kwargs),
            )
        except TemplateError:
            return None

    after_user = _after(trial(["Hello"]), 0)
    prompted = _after(trial(["Hello"], prompt=True), 0)
    header = prompted[len(_shared(after_user, prompted)) :]
    specials = _pattern(added)
    within = _after(trial(["Hello", "Hi", "Bye"]), 1, 2)
    last = _after(trial(["Hello", "Hi"]), 1)
    turn_end = _turn_end(within, last, specials)
    return Frame(header, after_user, turn_end, specials if last else None)


def _after(marked: MarkedText | None, index: int, until: int | None = None) -> str:
    if marked is None or index not in marked.ends:
        return ""
    return marked.text[marked.ends[index] : None if until is None else marked.starts.get(until)]


def _pattern(tokens: tuple[str, ...]) -> re.Pattern[str] | None:
    longest_first = sorted((t for t in tokens if t.strip()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _turn_end(within: str, last: str, specials: re.Pattern[str] | None) -> str:
    """Returns the special tokens that end a turn, in the middle of a chat and at its end alike.

    Without a special token, all the text that both have; "" when they have nothing alike.
    """
    shared = _shared(within, last) if within else last
    found = list(specials.finditer(last)) if specials else []
    whole = [token for token in found if token.end() <= len(shared)]
    if not whole:
        return shared if shared == last and not found else ""
    end = whole[0].end()
    for token in whole[1:]:
        if token.start() != end:
            break
        end = token.end()
    return shared[:end]


def _shared(left: str, right: str) -> str:
    """The beginning that two texts have in common."""
    length = min(len(left), len(right))
    if left[:length] == right[:length]:
        return left[:length]
    return left[: next(place for place in range(length) if left[place] != right[place])]


def response_span(
    marked: MarkedText, index: int, reach: Span, frame: Frame, message: Mapping[str, Any]
) -> Span:
    """Characters that the model is to produce for the assistant message at `index`.

    Args:
        marked: the rendered chat.
        index: of the message.
        reach: from the end of the previous message's words to the start of the next one's.
        frame: of the template.
        message: the assistant message.
    """
    first = min(max(marked.starts.get(index, reach.end), reach.start), reach.end)
    last = min(max(marked.ends.get(index, first), first), reach.end)
    if index not in marked.starts:
        first, last = reach.end, reach.start
    start = reach.start + _header_end(marked.text[reach.start : first], frame)
    last = max(last, start)
    calls = bool(message.get("tool_calls")) or index not in marked.ends
    end = last + _end_length(marked.text[last : reach.end], frame, calls)
    return Span(start, end)


def _header_end(before: str, frame: Frame) -> int:
    """Returns where in the text before the assistant's words the header ends.

    The words may be rendered with less than the header of a generation prompt (without its think
    tag), so the longest beginning of the header counts, but half of it must be there.
    """
    if not frame.header:
        return len(_shared(before, frame.after_user))
    least = len(OPENED_THOUGHT.sub("", frame.header)) / 2
    best, best_length = len(before), 0
    offset = before.find(frame.header[0])
    while offset >= 0:
        length = len(_shared(before[offset:], frame.header))
        if length >= max(least, best_length):
            best, best_length = offset + length, length
        offset = before.find(frame.header[0], offset + 1)
    return best


def _end_length(after: str, frame: Frame, calls: bool) -> int:
    """Length of what ends the turn; with tool calls the rest of the call comes before it."""
    if frame.turn_end:
        place = after.rfind(frame.turn_end) if calls else after.find(frame.turn_end)
        if place >= 0:
            return place + len(frame.turn_end)
    if calls and (closed := list(CALL_END.finditer(after))):
        return closed[-1].end()
    found = frame.specials.search(after) if frame.specials else None
    return found.end() if found else 0


def think_block(marked: MarkedText, index: int, reach: Span, response: Span, include: bool) -> Span:
    """Move an empty think block before the response out of it (include) or into it."""
    first = max(marked.starts.get(index, response.end), response.start)
    for block in EMPTY_THOUGHT.finditer(marked.text, reach.start, first):
        if block.start() <= response.start <= block.end():
            return response._replace(start=block.end() if include else block.start())
    ahead = EMPTY_THOUGHT_AHEAD.match(marked.text, response.start, first)
    return response._replace(start=ahead.end()) if include and ahead else response


class _Generation(Extension):
    """Lets the parser pass over `{% generation %}` blocks."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=FRAMES_KEPT)
def _dates_of(template: str) -> tuple[frozenset[str], tuple[str, ...], bool]:
    """Date variables a template names, formats of today's date in it, and if one is computed."""
    tree = jinja2.Environment(extensions=[_Generation, loopcontrols]).parse(template)
    names = frozenset(node.name for node in tree.find_all(nodes.Name)) & frozenset(DATE_PINS)
    formats: list[str] = []
    computed = False
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name == "strftime_now":
            argument = call.args[0] if call.args else None
            if isinstance(argument, nodes.Const):
                formats.append(str(argument.value))
            else:
                computed = True
    return names, tuple(formats), computed


def date_in(chat: Chat, prefix: str) -> str | None:
    """Returns how to pin the date that the template writes into the prefix; None without one.

    A date variable counts when nobody set it and the prefix shows a date; a call of
    `strftime_now` counts when the prefix shows today's date in its format.
    """
    if "strftime_now" not in chat.chat_template and "date_string" not in chat.chat_template:
        return None
    names, formats, computed = _dates_of(chat.chat_template)
    if names & set(chat.template_kwargs):
        return None
    today = any(datetime.now().strftime(each) in prefix for each in formats)
    default = "date_string" in names and re.search(r"\b\d{1,2} [A-Z][a-z]{2} \d{4}\b", prefix)
    if not (today or default or computed):
        return None
    pins = [DATE_PINS[name] for name in sorted(names, reverse=True)]
    return pins[0] if pins else "{...}, or write a fixed date into the chat template"
