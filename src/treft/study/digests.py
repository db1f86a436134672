"""SHA-256 of files and folders; a file that did not change is read once a process."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from treft.errors import ConfigError


def file_digest(path: Path) -> str:
    """Of a file's contents, as 64 hexadecimal digits."""
    status = path.stat()
    return _digest(str(path.resolve()), status.st_size, status.st_mtime_ns)


def data_digest(path: Path) -> str:
    """Of a file, or of all files in a folder with their names; where it lies does not count.

    Hidden files do not count either.

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
