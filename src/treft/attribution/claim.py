"""Whose folder it is: one file in it holds all that decides the results beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from treft.errors import ConfigError
from treft.files import write_whole


def check_claim(path: Path, claim: Mapping[str, Any], what: str) -> None:
    """See that a folder is new, or was begun with the same claim; nothing is written.

    Args:
        path: of the file in that folder.
        claim: all that decides the results, as JSON has it.
        what: the file is, in words.

    Raises:
        ConfigError: the folder holds something else, or was begun with another claim.
    """
    folder = path.parent
    if not path.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(f"{folder} holds something else: choose another --output.")
        return
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is no {what}: choose another --output.") from error
    changed = [name for name in {**claim, **before} if before.get(name) != claim.get(name)]
    if changed:
        raise ConfigError(
            f"{folder} was begun with other {', '.join(changed)}: choose another --output."
        )


def claim_folder(path: Path, claim: Mapping[str, Any], what: str) -> None:
    """`check_claim`, and write the claim down where there is none yet."""
    check_claim(path, claim, what)
    if not path.is_file():
        write_whole(path, json.dumps(claim, indent=1, ensure_ascii=False) + "\n")
