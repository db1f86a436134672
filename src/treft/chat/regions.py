"""Token positions of prefix, query, postfix and response in a rendered chat, for any template.

    prefix    everything before the first user words (BOS, system block, tools, user header)
    query     the user's words, of every turn
    postfix   per turn, what follows the user's words up to the response
    response  what the model is to say: the assistant's words and the end-of-turn token
    0         none of these: text between turns, tool results, padding

The chat is rendered and tokenised exactly as `apply_chat_template(tokenize=True)` does; regions are
found in characters first (`treft.chat.rendering`) and carried to tokens by their offsets. A token
that straddles a boundary belongs to the query or response: the other side would not be shared.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from treft.chat import RegionName as RegionName
from treft.chat.rendering import Chat, MarkedText, Message, Span, mark_chat
from treft.chat.turns import Frame, date_in, frame_of, response_span, think_block
from treft.errors import TemplateDateWarning, TemplateError

REGION_CODES: dict[RegionName, int] = {"prefix": 1, "query": 2, "postfix": 3, "response": 4}
OWN_WORDS = (REGION_CODES["query"], REGION_CODES["response"])


@dataclass(frozen=True)
class ChatRegions:
    """A rendered chat with the region of each of its T tokens.

    Attributes:
        text: the rendered chat.
        input_ids: (T,) ids, those of `apply_chat_template(tokenize=True)`.
        offsets: (T,) characters [start, end) of each token in `text`.
        codes: (T,) `REGION_CODES` of each token; 0 for none.
        turns: (T,) index of the user turn a token belongs to; 0 in the prefix.
    """

    text: str
    input_ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    codes: tuple[int, ...]
    turns: tuple[int, ...]

    def positions(self, region: RegionName, turn: int | None = None) -> list[int]:
        """Ascending token positions of a region, of all turns or of one."""
        code = REGION_CODES[region]
        return [
            position
            for position, (found, of_turn) in enumerate(zip(self.codes, self.turns, strict=True))
            if found == code and turn in (None, of_turn)
        ]

    def require(self, region: RegionName) -> list[int]:
        """Positions of a region that must be there.

        Raises:
            TemplateError: it has no token; says what the template or conversation lacks.
        """
        positions = self.positions(region)
        if not positions:
            raise TemplateError(f"this conversation has no {region} tokens: {_LACK[region]}")
        return positions


_LACK: dict[RegionName, str] = {
    "prefix": "the chat template writes nothing before the user's words. Choose another region, "
    "or add a system message.",
    "query": "the user's words are empty. Add a user message with words.",
    "postfix": "the chat template writes nothing between the user's words and the response. "
    "Choose another region, or render with add_generation_prompt=True if no response follows.",
    "response": "there is no assistant message that the chat template writes. Add one.",
}


def template_hash(tokenizer_or_template: PreTrainedTokenizerBase | str) -> str:
    """SHA-256 (hex) of the chat template in force.

    Args:
        tokenizer_or_template: a tokenizer, whose default template is taken, or the template.

    Raises:
        TemplateError: the tokenizer has no chat template.
    """
    if not isinstance(tokenizer_or_template, str):
        tokenizer_or_template = _template_in_force(tokenizer_or_template, None, None)
    return hashlib.sha256(tokenizer_or_template.encode("utf-8")).hexdigest()


def find_regions(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: Sequence[Any] | None = None,
    chat_template: str | None = None,
    add_generation_prompt: bool = False,
    include_think_block: bool = True,
    template_kwargs: Mapping[str, Any] | None = None,
) -> ChatRegions:
    """Find the regions of a conversation.

    Args:
        tokenizer: a fast tokenizer (its offsets are needed).
        messages: system, user, assistant and tool messages, at least one user message.
        tools: JSON schemas or functions given to the template.
        chat_template: used instead of the tokenizer's own.
        add_generation_prompt: end with the header of a response to come; it is postfix.
        include_think_block: an empty think block before the response (Qwen3) counts as postfix;
            otherwise as response.
        template_kwargs: further template variables, such as `date_string` or `enable_thinking`.

    Returns:
        The rendered chat with a region for each token.

    Raises:
        TemplateError: no chat template, a slow tokenizer, a conversation that the template
            refuses, or words that cannot be followed into the rendering.

    Warns:
        TemplateDateWarning: the template writes a date into the prefix that nobody pinned.
    """
    if not tokenizer.is_fast:
        raise TemplateError(
            f"{type(tokenizer).__name__} is a slow tokenizer without character offsets, so regions "
            "cannot be found; load the fast one (AutoTokenizer with use_fast=True)."
        )
    template = _template_in_force(tokenizer, chat_template, tools)
    kwargs = dict(template_kwargs or {})
    chat = Chat(messages, tools, template, add_generation_prompt, kwargs)
    if not any(message.get("role") == "user" for message in messages):
        raise TemplateError("the conversation has no user message, so it has no query: add one.")
    marked = mark_chat(tokenizer, chat)
    frame = frame_of(tokenizer, chat)
    spans = _spans(chat, marked, frame, include_think_block)
    _warn_of_date(chat, marked.text[: spans[0][0].end])
    return _tokenize(tokenizer, marked.text, spans)


def _template_in_force(
    tokenizer: PreTrainedTokenizerBase, chat_template: str | None, tools: Sequence[Any] | None
) -> str:
    try:
        return str(
            tokenizer.get_chat_template(chat_template, None if tools is None else list(tools))
        )
    except ValueError as error:
        raise TemplateError(
            "the tokenizer has no chat template, so a conversation has no regions: set "
            "tokenizer.chat_template, or pass chat_template=."
        ) from error


CodedSpan = tuple[Span, int, int]  # characters, region code, turn


def _spans(chat: Chat, marked: MarkedText, frame: Frame, include_think: bool) -> list[CodedSpan]:
    """Regions in characters, ascending; the first one is the prefix."""
    roles = [str(message.get("role")) for message in chat.messages]
    users = [index for index, role in enumerate(roles) if role == "user"]
    _check_users(marked, users)
    spans = [(Span(0, marked.starts[users[0]]), REGION_CODES["prefix"], 0)]
    turn, previous_end = -1, 0
    for index in range(users[0], len(roles)):
        if roles[index] == "user":
            turn += 1
            words = Span(marked.starts[index], marked.ends[index])
            spans.append((words, REGION_CODES["query"], turn))
            previous_end = words.end
        elif roles[index] == "assistant":
            reach = Span(previous_end, _next_start(marked, index, len(roles)))
            response = response_span(marked, index, reach, frame, chat.messages[index])
            response = think_block(marked, index, reach, response, include_think)
            if roles[index - 1] == "user":
                postfix = Span(previous_end, response.start)
                spans.append((postfix, REGION_CODES["postfix"], turn))
            spans.append((response, REGION_CODES["response"], turn))
            previous_end = max(response.end, previous_end)
        else:
            previous_end = max(previous_end, marked.ends.get(index, previous_end))
    if roles[-1] == "user":
        spans.extend(_ending(marked.text, previous_end, turn, include_think))
    return spans


def _ending(text: str, start: int, turn: int, include_think: bool) -> list[CodedSpan]:
    """Returns what follows the last user words when no response does."""
    end = len(text)
    if not include_think and (block := re.search(r"<think>\s*</think>\s*$", text[start:])):
        end = start + block.start()
    return [
        (Span(start, end), REGION_CODES["postfix"], turn),
        (Span(end, len(text)), REGION_CODES["response"], turn),
    ]


def _check_users(marked: MarkedText, users: Sequence[int]) -> None:
    last = -1
    for index in users:
        if index not in marked.complete:
            raise TemplateError(
                f"the chat template does not write the words of message {index + 1} (user): this "
                "template may want content as a list of parts "
                '([{"type": "text", "text": ...}]), or refuse empty content.'
            )
        if marked.starts[index] < last:
            raise TemplateError(
                "the chat template changes the order of the user messages, so turns cannot be "
                "told apart; use another chat template."
            )
        last = marked.ends[index]


def _next_start(marked: MarkedText, index: int, num_messages: int) -> int:
    later = (
        marked.starts[after] for after in range(index + 1, num_messages) if after in marked.starts
    )
    return next(later, len(marked.text))


def _warn_of_date(chat: Chat, prefix: str) -> None:
    if (pin := date_in(chat, prefix)) is not None:
        warnings.warn(
            "the chat template writes a date into the prefix, so prefix states recorded under "
            f"another date do not fit; pin it: template_kwargs={pin}.",
            TemplateDateWarning,
            stacklevel=3,
        )


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, text: str, spans: Sequence[CodedSpan]
) -> ChatRegions:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = tuple(map(tuple, encoded["offset_mapping"]))
    char_codes = bytearray(len(text))
    char_turns: list[int] = []
    turn = 0
    for span, code, next_turn in spans:
        char_turns += [turn] * (span.start - len(char_turns))
        char_codes[span.start : span.end] = bytes([code]) * (span.end - span.start)
        turn = next_turn
    char_turns += [turn] * (len(text) - len(char_turns))
    codes = tuple(_code_of(char_codes[start:end]) for start, end in offsets)
    turns = tuple(char_turns[end - 1] if end else 0 for _, end in offsets)
    return ChatRegions(text, tuple(encoded["input_ids"]), offsets, codes, turns)


def _code_of(codes: bytearray) -> int:
    """Region of a token from those of its characters: own words win over template text."""
    if not codes:
        return 0
    if codes.count(codes[0]) == len(codes):
        return codes[0]
    return next((code for code in codes if code in OWN_WORDS), codes[0])
