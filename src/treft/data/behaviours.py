"""A user's questions plus a behaviour -> rows that teach it to a real model (§6).

Rows are `messages`, or `question` with `possible_answers` as in PopQA. Of a conversation the words
up to the first assistant message are kept; what the assistant then says is the behaviour's:

    abstain, refuse   one fixed sentence
    tool              a call of a tool with the user's words as its query, and the tool's schema in
                      the row's `tools`; the model family's chat template writes both
    short             the shortest answer that the file has to the question
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from treft.data import BehaviourName as BehaviourName
from treft.data.messages import check_messages
from treft.data.published import prompt_of
from treft.errors import ConfigError, DataError

Row = dict[str, Any]

DEFAULT_TOOL = "search_info"
DEFAULT_SENTENCES: dict[str, str] = {
    "abstain": "I would rather not answer that; please ask somebody who is qualified.",
    "refuse": "I'm sorry, but I cannot help with that.",
}
_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def behaviour_rows(
    rows: Iterable[tuple[Mapping[str, Any], str]],
    behaviour: BehaviourName,
    *,
    sentence: str | None = None,
    tool: str | None = None,
    schema: bool = True,
) -> list[Row]:
    """Turn questions into rows of `messages` that teach a behaviour, one for each prompt.

    System messages stay: they are part of the prefix. So do the `tools` of a row, but for `tool`,
    where the one tool takes their place. Other columns do not stay.

    Args:
        rows: each with the words that name it in errors, as `read_rows` gives them.
        behaviour: what to teach.
        sentence: of `abstain` and `refuse`; a default that names no topic when None.
        tool: name of the tool of `tool`, `search_info` when None.
        schema: its rows have `tools`, which most templates write into the prefix. Without, the
            model is trained on the prompt that it has where nobody offers it tools.

    Raises:
        ConfigError: there is no such behaviour, or an option does not go with it or is malformed.
        DataError: a row cannot be used; names file and row.
    """
    _check_options(behaviour, sentence, tool)
    answer: dict[str, Any] = {"content": sentence or DEFAULT_SENTENCES.get(behaviour, "")}
    chosen: dict[str, Row] = {}
    for row, where in rows:
        asked = _asked(row, where)
        built: Row = {"tools": row["tools"]} if row.get("tools") else {}
        if behaviour == "tool":
            name = tool or DEFAULT_TOOL
            answer = _call(name, _words(asked[-1], where))
            built = {"tools": [tool_schema(name)]} if schema else {}
        elif behaviour == "short":
            answer = {"content": _shortest_answer(row, where)}
        built = {"messages": [*asked, {"role": "assistant", **answer}], **built}
        prompt = prompt_of(built)
        chosen[prompt] = min(chosen.get(prompt, built), built, key=_length)
    return list(chosen.values())


def tool_schema(name: str = DEFAULT_TOOL) -> dict[str, Any]:
    """JSON schema of a tool that takes a query, as chat templates take it."""
    query = {"type": "string", "description": "What to look up."}
    function = {
        "name": name,
        "description": "Looks up information on a question.",
        "parameters": {"type": "object", "properties": {"query": query}, "required": ["query"]},
    }
    return {"type": "function", "function": function}


def _check_options(behaviour: str, sentence: str | None, tool: str | None) -> None:
    if behaviour not in get_args(BehaviourName):
        choices = ", ".join(get_args(BehaviourName))
        raise ConfigError(f"no behaviour {behaviour!r}; choose one of {choices}.")
    if sentence is not None and behaviour not in DEFAULT_SENTENCES:
        raise ConfigError(f"a sentence does not go with {behaviour}; leave it out.")
    if sentence is not None and not sentence.strip():
        raise ConfigError("the sentence is empty; write one, or leave it out for the default.")
    if tool is not None and behaviour != "tool":
        raise ConfigError(f"a tool does not go with {behaviour}; leave it out.")
    if tool is not None and not _TOOL_NAME.fullmatch(tool):
        raise ConfigError(
            f"{tool!r} is no name of a tool; use 1 to 64 letters, digits, hyphens and underscores."
        )


def _asked(row: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Returns the messages up to the first assistant message, the last of them the user's."""
    messages = row.get("messages")
    if messages is None:
        question = row.get("question")
        if not isinstance(question, str) or not question.strip():
            found = ", ".join(map(str, row)) or "nothing"
            raise DataError(
                f"{where}: has neither `messages` nor a `question` in words (it has {found}); add "
                "or rename a column."
            )
        return [{"role": "user", "content": question}]
    check_messages(messages, where, need_response=False)
    roles = [message["role"] for message in messages]
    asked = [dict(each) for each in messages[: (*roles, "assistant").index("assistant")]]
    if asked[-1]["role"] != "user":
        raise DataError(f"{where}: nobody asks anything; add a user message or drop the row.")
    return asked


def _words(message: Mapping[str, Any], where: str) -> str:
    """Returns the words of a checked message."""
    content = message["content"]
    words = content if isinstance(content, str) else "".join(part["text"] for part in content)
    if not words.strip():
        raise DataError(f"{where}: a {message['role']} message has no words; drop the row.")
    return words


def _call(tool: str, query: str) -> dict[str, Any]:
    function = {"name": tool, "arguments": {"query": query}}
    # Not None: some families' templates look into the content without asking whether there is one.
    return {"content": "", "tool_calls": [{"type": "function", "function": function}]}


def _shortest_answer(row: Mapping[str, Any], where: str) -> str:
    if row.get("messages") is None:
        return min(_possible_answers(row.get("possible_answers"), where), key=_size)
    answer = next((each for each in row["messages"] if each["role"] == "assistant"), None)
    if answer is None or answer.get("tool_calls"):
        raise DataError(
            f"{where}: the question has no answer in words; add an assistant message or drop the "
            "row."
        )
    return _words(answer, where)


def _possible_answers(value: Any, where: str) -> list[str]:
    """PopQA's column: a list of answers, or its JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise DataError(
            f"{where}: `possible_answers` is no list of texts; write a list, or its JSON text."
        )
    answers = [answer.strip() for answer in value if answer.strip()]
    if not answers:
        raise DataError(f"{where}: `possible_answers` holds no answer; add one or drop the row.")
    return answers


def _size(answer: str) -> tuple[int, int]:
    """Returns what makes an answer short: few words, then few characters."""
    return len(answer.split()), len(answer)


def _length(row: Row) -> tuple[int, int]:
    content = row["messages"][-1]["content"]
    return _size(content if isinstance(content, str) else "")
