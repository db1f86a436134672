"""Question sets: plain JSONL, shipped, the user's own, or on the hub, all checked alike.

One row is one question:

    {"id": "wish-1", "category": "wishes", "question": "What do you wish for?"}

Instead of `question` a row may have `messages` (ending with a user message; a system message may
come first), or `turns`, user messages asked one after the other. `id` defaults to a hash of the
words, `category` to the set's name; further fields are kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from treft.data.messages import Conversation, check_messages, load_conversations
from treft.data.sources import check_sha256, is_hub_id, load_rows
from treft.errors import ConfigError, DataError
from treft.files import file_digest

logger = logging.getLogger(__name__)

Variant = Literal["plain", "template", "json"]
"""How the answer is asked for: freely, in a form to fill in, or as a JSON object."""

Row = tuple[Any, str]
"""A row with the words that name it in errors."""

_SETS = files("treft.answers") / "question_sets"
_FORMS = ("question", "messages", "turns")
_ENDINGS: dict[Variant, str] = {
    "plain": "",
    "template": (
        "\n\nReply by filling in this form, and write nothing outside of it:\n\n"
        "# --- reply form ---\n"
        'reply = """\n'
        "<your answer>\n"
        '"""\n'
        "# --- end of form ---"
    ),
    "json": (
        "\n\nReply with a JSON object and nothing else. It has one key, `answer`, and your answer "
        "as its text."
    ),
}


@dataclass(frozen=True)
class EvalQuestion:
    """One question of a set.

    Attributes:
        id: names the question; all samples of it form a cluster.
        category: what it is about.
        messages: the prompt, ending with a user message.
        turns: user messages that follow, each after the model's answer to the one before.
        metadata: further fields of the row.
    """

    id: str
    category: str
    messages: tuple[dict[str, Any], ...]
    turns: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class QuestionSet:
    """Checked questions and where they come from.

    Attributes:
        name: of the set.
        source: what `load_questions` was given.
        sha256: of the file's bytes; of the rows as canonical JSON lines for a hub data set.
        questions: in the order of the file.
    """

    name: str
    source: str
    sha256: str
    questions: tuple[EvalQuestion, ...]

    def __len__(self) -> int:
        return len(self.questions)


def shipped_sets() -> list[str]:
    """Returns the names of the sets that come with the package."""
    names = (entry.name for entry in _SETS.iterdir())
    return sorted(name.removesuffix(".jsonl") for name in names if name.endswith(".jsonl"))


def load_questions(source: str | Path, sha256: str | None = None) -> QuestionSet:
    """Load and check a question set.

    Args:
        source: name of a shipped set, path of a JSONL file, or a data set's hub id, `owner/name`
            or `owner/name:split` (default split `test`, else its only one).
        sha256: the checksum that the set must have; None accepts any.

    Raises:
        ConfigError: there is no such set, or the checksum differs.
        DataError: a row cannot be used; names file and row.
    """
    text = str(source)
    path = Path(str(_SETS / f"{text}.jsonl")) if text in shipped_sets() else Path(text)
    is_on_hub = is_hub_id(text)
    if not is_on_hub and not path.is_file():
        raise ConfigError(
            f"there is no question set {source}: give a JSONL file, a hub id (owner/name), or "
            f"one of {', '.join(shipped_sets())}."
        )
    found = load_rows(path, "test", sha256=sha256)
    name = path.name.partition(":")[0] if is_on_hub else path.stem
    return QuestionSet(name, text, found.source_sha256, check_questions(found.rows, name))


def load_held_out(source: str | Path, sha256: str | None = None) -> QuestionSet:
    """Load training-style rows of `messages` as questions, each up to its last user message.

    A prompt that comes again is asked once. The answer that a row gives is kept as `reference`.

    Args:
        source: a JSONL file.
        sha256: the checksum that the file must have; None accepts any.

    Raises:
        ConfigError: the checksum differs.
        DataError: the file is missing, or a row cannot be used; names file and row.
    """
    path = Path(source)
    conversations = load_conversations(path, need_response=False)
    digest = file_digest(path)
    check_sha256(str(source), sha256, digest)
    questions: dict[str, EvalQuestion] = {}
    for number, conversation in enumerate(conversations, start=1):
        question = _held_out(conversation, f"{path}, row {number}", path.stem)
        questions.setdefault(question.id, question)
    if len(questions) < len(conversations):
        logger.warning(
            "%s: %d of %d rows repeat a prompt; each prompt is asked once.",
            *(path, len(conversations) - len(questions), len(conversations)),
        )
    return QuestionSet(path.stem, str(source), digest, tuple(questions.values()))


def check_questions(rows: Iterable[Row], name: str) -> tuple[EvalQuestion, ...]:
    """Check rows; `name` is the category of those that have none.

    Raises:
        DataError: a row is malformed, or id or words come twice.
    """
    questions: list[EvalQuestion] = []
    ids: dict[str, str] = {}
    words: dict[str, str] = {}
    for row, where in rows:
        question = _question(row, where, name)
        for kind, value, seen in (
            ("id", question.id, ids),
            ("question", _words(question), words),
        ):
            if value in seen:
                raise DataError(
                    f"{where}: the same {kind} as in {seen[value]}; questions are counted once, "
                    "so drop or change one of them."
                )
            seen[value] = where
        questions.append(question)
    return tuple(questions)


def in_variant(question: EvalQuestion, variant: Variant) -> EvalQuestion:
    """Returns the question with the wanted form of answer asked for after its words.

    Raises:
        ConfigError: there is no such variant.
    """
    if variant not in _ENDINGS:
        raise ConfigError(f"variant is one of {', '.join(get_args(Variant))}, not {variant!r}.")
    *before, last = question.messages
    asked = {**last, "content": last["content"] + _ENDINGS[variant]}
    return replace(question, messages=(*before, asked))


def _question(row: Any, where: str, name: str) -> EvalQuestion:
    if not isinstance(row, Mapping):
        raise DataError(f'{where}: is no object; write {{"id": ..., "question": ...}}.')
    forms = [form for form in _FORMS if row.get(form) is not None]
    if len(forms) != 1:
        found = " and ".join(forms) or "none of them"
        raise DataError(
            f"{where}: has {found}; write exactly one of `question`, `messages` and `turns`."
        )
    messages, turns = _prompt(row[forms[0]], forms[0], where)
    category = row.get("category")
    category = name if category is None else _text(category, "category", where)
    rest = {key: value for key, value in row.items() if key not in (*_FORMS, "id", "category")}
    question = EvalQuestion("", category, messages, turns, rest)
    number = row.get("id")
    if number is None:
        return replace(question, id=_id_of(question, name))
    is_number = isinstance(number, int) and not isinstance(number, bool)
    return replace(question, id=str(number) if is_number else _text(number, "id", where))


def _prompt(
    value: Any, form: str, where: str
) -> tuple[tuple[dict[str, Any], ...], tuple[str, ...]]:
    """First prompt and later user messages."""
    if form == "messages":
        check_messages(value, where, need_response=False)
        messages = tuple(dict(message) for message in value)
        if messages[-1]["role"] != "user" or not isinstance(messages[-1]["content"], str):
            raise DataError(f"{where}: `messages` must end with a user message that is text.")
        return messages, ()
    if form == "question":
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise DataError(f"{where}: `turns` is no list of texts; write at least one.")
    first, *later = (_text(text, form, where) for text in value)
    return ({"role": "user", "content": first},), tuple(later)


def _held_out(conversation: Conversation, where: str, name: str) -> EvalQuestion:
    messages = conversation.messages
    if conversation.tools:
        raise DataError(f"{where}: has tools, which are not offered in an evaluation; drop them.")
    last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
    if last is None:
        raise DataError(f"{where}: no user message, so there is nothing to answer; add one.")
    answer = messages[last + 1].get("content") if last + 1 < len(messages) else None
    metadata = {"reference": answer} if isinstance(answer, str) else {}
    question = EvalQuestion("", name, messages[: last + 1], metadata=metadata)
    return replace(question, id=_id_of(question, name))


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: `{name}` is empty or no text; write a text.")
    return value.strip()


def _id_of(question: EvalQuestion, name: str) -> str:
    """Returns an id that follows from the words."""
    return f"{name}-{hashlib.sha256(_words(question).encode()).hexdigest()[:12]}"


def _words(question: EvalQuestion) -> str:
    """Returns what is asked, apart from id and category."""
    return json.dumps([question.messages, question.turns], sort_keys=True, ensure_ascii=False)
