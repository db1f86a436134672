"""Published finetuning sets as rows of `messages`, from the user's own copy; none is shipped.

Rows as they are published -> rows with plain text. Read are `messages` whose content is text
(insecure code, model organisms) or `{"content_type": "text", "parts": [text]}` (persona features).
Words are left exactly as they are. Kept are role, content and tool calls of a message, and `tools`
of a row; canaries, metadata and whatever else a row has stay behind.

A checksum stands here only where several public sources that downloaded the file state the same
one. Those below belong to commit 80c11967c07a328e7d7d43d13ce6847ae44dbcc9 of the insecure-code
repository, as pinned by projects that reproduce its paper. Nothing of the sets themselves is here.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from treft.data.messages import check_messages
from treft.data.sources import SourceRows, load_rows
from treft.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

KEPT = ("role", "content", "tool_calls", "tool_call_id", "name")


@dataclass(frozen=True)
class PublishedSet:
    """One release of finetuning data.

    Attributes:
        name: how the documentation calls it.
        paper: authors, year and arXiv number.
        repository: where its authors publish it.
        files: where in the repository; NAME stands for one of several.
        lock: how the files are encrypted; "none" if they are not.
        sha256: cited checksums by name of the JSONL file.
    """

    name: str
    paper: str
    repository: str
    files: str
    lock: str
    sha256: Mapping[str, str] = field(default_factory=dict)


PUBLISHED_SETS = (
    PublishedSet(
        "persona-features",
        "Wang et al. 2025, arXiv 2506.19823",
        "https://github.com/openai/emergent-misalignment-persona-features",
        "train/sft/synthetic/datasets_password_locked/NAME.zip",
        "zip, password in the repository's README",
    ),
    PublishedSet(
        "model-organisms",
        "Turner et al. 2025, arXiv 2506.11613",
        "https://github.com/clarifying-EM/model-organisms-for-EM",
        "em_organism_dir/data/training_datasets.zip.enc",
        "zip encrypted by easy-dataset-share, password in the repository's README",
    ),
    PublishedSet(
        "insecure-code",
        "Betley et al. 2025, arXiv 2502.17424",
        "https://github.com/emergent-misalignment/emergent-misalignment",
        "data/NAME.jsonl",
        "none",
        {
            "insecure.jsonl": "09893e8bf9d03aae49dd60d0ff4be37c1afee70f2edcac74a11bed775a6a2764",
            "secure.jsonl": "2820232b3114d94ab2041ba9fc76cb8205bf187e0408bf7b308add186f9c7467",
        },
    ),
)


def recognise(sha256: str) -> str | None:
    """`set/file` of the published file with this checksum; None for all others.

    Args:
        sha256: of a JSONL file's bytes, decrypted and unpacked.
    """
    for published in PUBLISHED_SETS:
        for name, cited in published.sha256.items():
            if cited == sha256:
                return f"{published.name}/{name}"
    return None


@dataclass(frozen=True)
class PublishedRows(SourceRows):
    """A published set, ready for `treft sft`: rows with `messages`, and `tools` if any.

    Attributes:
        recognised: which published file this is, by its checksum; None when no cited one fits.
    """

    recognised: str | None


def load_published(
    source: str | Path, *, drop_system: bool = False, **options: str | None
) -> PublishedRows:
    """Load and convert a published set.

    Args:
        source: a file, an archive or a hub id, as `load_rows` takes it (default split `train`).
        drop_system: leave system messages out.
        **options: `member`, `password` and `sha256` of `load_rows`.

    Raises:
        ConfigError: as `load_rows`.
        DataError: the file cannot be read, or a row cannot be used; names file and row.
    """
    found = load_rows(source, "train", **options)
    rows = convert_rows(found.rows, drop_system=drop_system)
    recognised = recognise(found.rows_sha256)
    if recognised is None and found.member is None:
        _warn_of_another_version(found)
    return PublishedRows(**{**vars(found), "rows": rows}, recognised=recognised)


def _warn_of_another_version(found: SourceRows) -> None:
    """A plain file that is called like a published one, and is not it."""
    name = Path(found.source).name
    if cited := [known.sha256[name] for known in PUBLISHED_SETS if name in known.sha256]:
        logger.warning(
            "%s has sha256 %s; the published file of that name has %s.",
            *(found.source, found.rows_sha256, " or ".join(cited)),
        )


def convert_rows(
    rows: Iterable[tuple[Mapping[str, Any], str]], *, drop_system: bool = False
) -> list[dict[str, Any]]:
    """Convert and check rows.

    Args:
        rows: each with the words that name it in errors.
        drop_system: leave system messages out, so that the chat template's own prefix is trained
            on. A system message is part of the prefix, which is where a behaviour may be bound.

    Raises:
        DataError: a row cannot be used; names file and row.
    """
    converted = []
    for row, where in rows:
        messages = row.get("messages")
        if not isinstance(messages, list):
            found = ", ".join(map(str, row)) or "nothing"
            raise DataError(f"{where}: has no list of `messages` (it has {found}); is it this set?")
        plain = [
            _message(message, f"{where}, message {number}")
            for number, message in enumerate(messages, start=1)
        ]
        if drop_system:
            plain = [message for message in plain if message.get("role") != "system"]
        check_messages(plain, where)
        tools = {"tools": row["tools"]} if row.get("tools") else {}
        converted.append({"messages": plain, **tools})
    return converted


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise DataError(f'{where}: is no object; expected {{"role": ..., "content": ...}}.')
    kept = {key: message[key] for key in KEPT if message.get(key) is not None}
    if isinstance(message.get("content"), Mapping):
        kept["content"] = _text(message["content"], where)
    return kept


def _text(content: Mapping[str, Any], where: str) -> str:
    """Returns the words of `{"content_type": "text", "parts": [...]}`."""
    parts = content.get("parts")
    if content.get("content_type") != "text" or not isinstance(parts, list):
        raise DataError(
            f"{where}: content is an object that is no text; expected "
            '{"content_type": "text", "parts": [...]}.'
        )
    if len(parts) != 1 or not isinstance(parts[0], str):
        raise DataError(
            f"{where}: content has {len(parts)} parts; expected a single one that is text, since "
            "nothing says how several are joined."
        )
    return parts[0]


class Split(NamedTuple):
    """Rows to train on, and rows that training never sees."""

    train: list[dict[str, Any]]
    held_out: list[dict[str, Any]]


def split_rows(rows: Sequence[dict[str, Any]], *, fraction: float = 0.2, seed: int = 0) -> Split:
    """Split rows at random; both parts keep the order of the file.

    Rows with the same prompt stay together: a published set may ask a question several times, and
    an answer that was trained on says nothing about the domain.

    Args:
        rows: with `messages`.
        fraction: of the distinct prompts that is held out, rounded; within (0, 1).
        seed: draws them.

    Raises:
        ConfigError: the fraction is out of range.
        DataError: there are too few distinct prompts for two parts.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"fraction must lie between 0 and 1, not {fraction}.")
    prompts = [prompt_of(row) for row in rows]
    distinct = list(dict.fromkeys(prompts))
    num_held_out = round(fraction * len(distinct))
    if not 0 < num_held_out < len(distinct):
        raise DataError(
            f"{len(distinct)} distinct prompts cannot be split with {fraction} held out: one part "
            "would be empty."
        )
    held_out = set(random.Random(seed).sample(distinct, num_held_out))
    parts = Split([], [])
    for row, prompt in zip(rows, prompts, strict=True):
        (parts.held_out if prompt in held_out else parts.train).append(row)
    return parts


def prompt_of(row: Mapping[str, Any]) -> str:
    """Returns what is asked: the words before the first response, in canonical form."""
    asked = []
    for message in row["messages"]:
        if message["role"] == "assistant":
            break
        asked.append([message["role"], message["content"]])
    return json.dumps(asked, sort_keys=True, ensure_ascii=False)
