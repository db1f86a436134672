"""Rows of data sets on the Hugging Face hub, and the checksums that files and sets are held to."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from treft.errors import ConfigError

FILE_SUFFIXES = (".jsonl", ".json", ".zip", ".enc")
"""What ends so is the name of a file, there or not."""


class HubRows(NamedTuple):
    """A data set's rows.

    Attributes:
        name: the id without its owner.
        sha256: of the rows as canonical JSON lines.
        rows: each with the words that name it in errors.
    """

    name: str
    sha256: str
    rows: list[tuple[dict[str, Any], str]]


def is_hub_id(source: str) -> bool:
    """Whether this can be nothing but `owner/name`, maybe with `:split`."""
    return (
        source.count("/") == 1 and not source.endswith(FILE_SUFFIXES) and not Path(source).exists()
    )


def load_hub_rows(source: str, split: str) -> HubRows:
    """Load a data set.

    Args:
        source: `owner/name` or `owner/name:split`.
        split: the one to take when `source` names none; a set's only split goes for it.

    Raises:
        ConfigError: it cannot be loaded, or has several splits and not this one.
    """
    name, _, named = source.partition(":")
    try:
        from datasets import DatasetDict, load_dataset

        found = load_dataset(name, split=named or None)
    except ImportError as error:
        raise ConfigError(
            f"{source} is no file, and hub data sets need: pip install 'treft[train]'"
        ) from error
    except Exception as error:  # datasets raises a different one for each way to fail
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(
            f"{source} is neither a file nor a data set that can be loaded from the hub ({first}). "
            "Without a network, save it as a JSONL file and give its path."
        ) from error
    if isinstance(found, DatasetDict):
        splits = list(found)
        if split not in splits and len(splits) != 1:
            raise ConfigError(f"{name} has the splits {', '.join(splits)}: give {name}:SPLIT.")
        found = found[split if split in splits else splits[0]]
    rows = [(dict(row), f"{source}, row {number}") for number, row in enumerate(found, start=1)]
    lines = [json.dumps(row, sort_keys=True, ensure_ascii=False) for row, _ in rows]
    return HubRows(name.split("/")[1], hashlib.sha256("\n".join(lines).encode()).hexdigest(), rows)


def check_sha256(source: str, wanted: str | None, found: str) -> None:
    """Hold a file or data set to a checksum; None accepts any.

    Raises:
        ConfigError: it has another one.
    """
    if wanted is not None and wanted.lower() != found:
        raise ConfigError(
            f"{source} has sha256 {found}, not {wanted}: it is another version, or damaged."
        )
