"""Settings of a study's recipe, read from words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from treft.errors import ConfigError

Recipe = TypeVar("Recipe")


def read_settings(recipe: type[Recipe], settings: Mapping[str, Any]) -> Recipe:
    """A recipe with some fields given, as what they are or in words.

    Args:
        recipe: a dataclass.
        settings: value by field.

    Raises:
        ConfigError: a name is no field of the recipe, or a value is of another type or out of
            range.
    """
    from pydantic import TypeAdapter, ValidationError

    known = [entry.name for entry in fields(recipe)]  # type: ignore[arg-type]
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise ConfigError(f"no such setting: {', '.join(unknown)}; there are {', '.join(known)}.")
    try:
        return TypeAdapter(recipe).validate_python(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "settings"
        raise ConfigError(f"{where}: {first['msg']}, not {first['input']!r}.") from error
