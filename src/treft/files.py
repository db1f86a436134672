"""Read text; write files whole or not at all; values as JSON has them; digests of files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from treft.errors import ConfigError, DataError


def new_output(parent: Path) -> Path:
    """A dated folder in `parent` that does not exist yet."""
    name = datetime.now().strftime("%Y-%m-%d-%H%M%S")
    candidates = (parent / (name + suffix) for suffix in ("", *(f"-{i}" for i in range(1, 100))))
    return next(path for path in candidates if not path.exists())


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that no reader ever finds half of it; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSONL file, whole: one object a line."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def as_json(value: Any) -> Any:
    """Returns results as JSON has them: an object's fields by name, unless it has a `to_dict`."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if hasattr(value, "_asdict"):
        return as_json(value._asdict())
    if is_dataclass(value):
        return {each.name: as_json(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(each) for each in value]
    return value


def read_text(path: Path) -> str:
    """Returns a file's text, without the mark that some editors put at its beginning.

    Raises:
        DataError: the file cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error.reason}); save it as UTF-8.") from error


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file's contents as 64 hexadecimal digits.

    A file that did not change is read once a process.
    """
    status = path.stat()
    return _digest(str(path.resolve()), status.st_size, status.st_mtime_ns)


def data_digest(path: Path) -> str:
    """Returns the digest of a file, or of all files in a folder with their names.

    Where it lies does not count, and neither do hidden files.

    Raises:
        ConfigError: there is nothing, or a folder without a file.
    """
    if path.is_file():
        return file_digest(path)
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise ConfigError(f"{path}: there is no such file, and no folder with files.")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(path).as_posix()}\0{file_digest(file)}\n".encode())
    return digest.hexdigest()


@lru_cache(maxsize=65536)
def _digest(path: str, size: int, modified: int) -> str:
    """Size and time of change are arguments so that a changed file is read again."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
