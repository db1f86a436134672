"""Write files whole or not at all, into folders that are new."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path


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
