"""Keep keys out of what is written: logs, reports, caches, messages."""

from __future__ import annotations

import os
import re

_SECRET_NAME = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD)S?$", re.IGNORECASE)
_MIN_LENGTH = 8
"""Shorter values are settings such as `true`, and would be struck out of ordinary words."""


def is_secret_name(name: str) -> bool:
    """Whether a variable or option of this name holds a key."""
    return _SECRET_NAME.search(name) is not None


def without_secrets(text: str) -> str:
    """Text with the values of the environment's keys replaced by the variables' names."""
    for name, value in os.environ.items():
        if is_secret_name(name) and len(value) >= _MIN_LENGTH:
            text = text.replace(value, f"[{name}]")
    return text
