"""Help of options, taken from docstrings: the line of a field in its class's `Attributes`."""

from __future__ import annotations

import re
from dataclasses import fields
from inspect import cleandoc
from typing import TypeVar

Documented = TypeVar("Documented", bound=type)


def class_words(kind: type) -> str:
    """Returns the docstring of a class, without its indentation."""
    return cleandoc(kind.__doc__ or "")


def field_words(kind: type) -> dict[str, str]:
    """Returns what the docstrings of a class and its bases say of each field."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        section = class_words(each).partition("Attributes:\n")[2]
        for name, text in re.findall(r"^    (\w+): (.+(?:\n {6,}.+)*)", section, re.MULTILINE):
            found[name] = " ".join(text.split())
    return found


def with_help(kind: Documented) -> Documented:
    """Gives a dataclass's fields the help that `HfArgumentParser` shows; a decorator."""
    words = field_words(kind)
    for item in fields(kind):
        if "help" not in item.metadata and item.name in words:
            item.metadata = {**item.metadata, "help": words[item.name].replace("%", "%%")}  # type: ignore[assignment]
    return kind
