"""What a model wrote: its thoughts, its words and its tool calls, in the formats of the families.

Hermes / Qwen   <tool_call>{"name": ..., "arguments": {...}}</tool_call>
Llama 3.x       {"name": ..., "parameters": {...}}, also after <|python_tag|>;
                <|python_tag|>name.call(key="value"); <function=name>{...}</function>;
                [name(key="value")]
Mistral         [TOOL_CALLS][{"name": ..., "arguments": {...}}]; [TOOL_CALLS]name[ARGS]{...}
GPT-OSS         <|channel|>commentary to=functions.name <|constrain|>json<|message|>{...}<|call|>

Where a marker is a special token and was dropped in decoding, what is left is still recognised as
long as the answer holds nothing but the call. JSON in the middle of prose is no call.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

_DECODER = json.JSONDecoder()
_HERMES = re.compile(r"<tool_call>\s*(\{.*?\})\s*(?:</tool_call>|\Z)", re.DOTALL)
_NAME = re.compile(r'"name"\s*:\s*"([\w.-]+)"')
_TAGGED = re.compile(r"<function=([\w.-]+)>\s*(\{.*?\})\s*(?:</function>|\Z)", re.DOTALL)
_PYTHON_TAG = re.compile(r"<\|python_tag\|>(.*?)(?:<\|eom_id\|>|<\|eot_id\|>|\Z)", re.DOTALL)
_MISTRAL = re.compile(r"\[TOOL_CALLS\]\s*(?=\[\s*\{)")
_MISTRAL_NAMED = re.compile(r"\[TOOL_CALLS\]\s*([\w.-]+)(?:\[CALL_ID\][\w-]+)?(?:\[ARGS\])?(?=\{)")
_HARMONY_ENDS = re.compile(r"<\|(?:start|end|call|return)\|>")
_HARMONY_TOOL = re.compile(r"to=functions\.([\w.-]+)")
_HARMONY_CHANNEL = re.compile(r"<\|channel\|>(\w+)")
_HARMONY_BARE = re.compile(r"to=functions\.([\w.-]+?)\s*(?:commentary)?\s*(?:json)?\s*(?=\{)")
_THOUGHT = re.compile(r"\A\s*(?:<think>(.*?)(?:</think>|\Z)|(.*?)</think>)", re.DOTALL)
_PYTHONIC = re.compile(r"\A\[?[A-Za-z_][\w.]*\(.*\)\]?\Z", re.DOTALL)


class Turn(NamedTuple):
    """One message of a conversation."""

    role: str
    text: str


@dataclass(frozen=True)
class WrittenCall:
    """One tool call as the model wrote it; `arguments` is empty when they cannot be read."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class ParsedAnswer:
    """An answer in its parts.

    Attributes:
        text: the words for the user, without thoughts and calls.
        thoughts: what the model thought aloud; empty for none.
        calls: tool calls in order.
    """

    text: str
    thoughts: str = ""
    calls: tuple[WrittenCall, ...] = field(default=())


def parse_answer(written: str, tools: Collection[str] | None = None) -> ParsedAnswer:
    """Take an answer apart.

    Args:
        written: the decoded tokens, best with their special tokens.
        tools: names that a call without any marker may have (`{"name": ...}` or `name(...)` could
            be the answer to a question about code); None takes any.
    """
    if _is_harmony(written):
        return _harmony(written)
    thoughts, rest = split_thoughts(written)
    for find in (_marked_calls, _mistral_calls, _bare_calls):
        calls, words = find(rest)
        if find is _bare_calls and tools is not None:
            calls = [call for call in calls if call.name in tools]
        if calls:
            return ParsedAnswer(words.strip(), thoughts, tuple(calls))
    return ParsedAnswer(rest, thoughts)


def split_thoughts(written: str) -> tuple[str, str]:
    """What a model thought aloud (empty for nothing) and what it then said, calls included."""
    if _is_harmony(written):
        parsed = _harmony(written)
        return parsed.thoughts, written if parsed.calls else parsed.text
    found = _THOUGHT.match(written)
    if found is None:
        return "", written
    return (found[1] or found[2] or "").strip(), written[found.end() :].strip()


def _is_harmony(written: str) -> bool:
    return "<|channel|>" in written or "to=functions." in written


def _harmony(written: str) -> ParsedAnswer:
    """The messages of GPT-OSS, each with a channel; calls name a recipient in their header."""
    calls: list[WrittenCall] = []
    parts: dict[str, list[str]] = {}
    for message in _HARMONY_ENDS.split(written):
        header, mark, body = message.partition("<|message|>")
        tool, channel = _HARMONY_TOOL.search(header), _HARMONY_CHANNEL.search(header)
        if mark and tool:
            calls.append(WrittenCall(tool[1], _object_at(body, 0)[0]))
        elif mark:
            parts.setdefault(channel[1] if channel else "final", []).append(body.strip())
    if not calls and not parts:  # the special tokens were dropped
        found = _HARMONY_BARE.search(written)
        if found is None:
            return ParsedAnswer(written)
        call = WrittenCall(found[1], _object_at(written, found.end())[0])
        return ParsedAnswer("", written[: found.start()].strip(), (call,))
    words = parts.get("final") or parts.get("commentary") or []
    return ParsedAnswer("\n\n".join(words), "\n\n".join(parts.get("analysis", [])), tuple(calls))


def _marked_calls(written: str) -> tuple[list[WrittenCall], str]:
    """Calls between tags, and the rest."""
    calls: list[WrittenCall] = []
    for found in _HERMES.finditer(written):
        value = _json(found[1])
        name = _NAME.search(found[1])
        calls += [WrittenCall(name[1], {})] if value is None and name else _calls_in(value)
    for found in _TAGGED.finditer(written):
        arguments = _json(found[2])
        calls.append(WrittenCall(found[1], arguments if isinstance(arguments, dict) else {}))
    for found in _PYTHON_TAG.finditer(written):
        calls += _bare_calls(found[1])[0]
    rest = written
    for pattern in (_HERMES, _TAGGED, _PYTHON_TAG):
        rest = pattern.sub("", rest)
    return calls, rest


def _mistral_calls(written: str) -> tuple[list[WrittenCall], str]:
    calls: list[WrittenCall] = []
    spans: list[tuple[int, int]] = []
    for found in _MISTRAL.finditer(written):
        value, end = _value_at(written, found.end())
        calls += _calls_in(value)
        spans.append((found.start(), end))
    for found in _MISTRAL_NAMED.finditer(written):
        arguments, end = _object_at(written, found.end())
        calls.append(WrittenCall(found[1], arguments))
        spans.append((found.start(), end))
    rest = written
    for start, end in sorted(spans, reverse=True):
        rest = rest[:start] + rest[end:]
    return calls, rest


def _bare_calls(written: str) -> tuple[list[WrittenCall], str]:
    """Calls that are the whole answer: JSON values with `;` between them, or Python calls."""
    text = written.strip()
    if _PYTHONIC.match(text):
        return list(_python_calls(text)), ""
    calls: list[WrittenCall] = []
    position = 0
    while text[position : position + 1] in ("{", "["):
        value, position = _value_at(text, position)
        found = _calls_in(value)
        if not found:
            return [], written
        calls += found
        while text[position : position + 1] in (";", ",", " ", "\n"):
            position += 1
    return (calls, "") if position == len(text) else ([], written)


def _python_calls(text: str) -> Iterator[WrittenCall]:
    """`name(key=value)`, one or a list of them; `name.call(...)` is Llama's form of a tool."""
    try:
        body = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in body.elts if isinstance(body, ast.List) else [body]:
        if not isinstance(node, ast.Call):
            continue
        try:
            arguments = {
                keyword.arg: ast.literal_eval(keyword.value)
                for keyword in node.keywords
                if keyword.arg is not None
            }
        except ValueError:
            arguments = {}
        yield WrittenCall(ast.unparse(node.func).removesuffix(".call"), arguments)


def _calls_in(value: Any) -> list[WrittenCall]:
    """Calls that a JSON value describes: an object, or a list of them."""
    calls = []
    for entry in value if isinstance(value, list) else [value]:
        entry = entry.get("function", entry) if isinstance(entry, dict) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            return []
        arguments = entry.get("arguments", entry.get("parameters"))
        if isinstance(arguments, str):
            arguments = _json(arguments)
        if arguments is None and len(entry) > 1:
            return []
        calls.append(WrittenCall(entry["name"], arguments if isinstance(arguments, dict) else {}))
    return calls


def _object_at(text: str, position: int) -> tuple[dict[str, Any], int]:
    """Returns the JSON object that starts there, empty if malformed, and its end."""
    value, end = _value_at(text, position)
    return value if isinstance(value, dict) else {}, end


def _value_at(text: str, position: int) -> tuple[Any, int]:
    """The JSON value that starts there and its end; None and the text's end if malformed."""
    try:
        found: tuple[Any, int] = _DECODER.raw_decode(text, position)
    except (ValueError, RecursionError):
        return None, len(text)
    return found


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
