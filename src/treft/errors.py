"""Errors that a user can mend: each message says what is wrong, where, and what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class TreftError(ValueError):
    """Base of every error that treft raises on purpose."""


class ConfigError(TreftError):
    """An option is out of range, unknown, or contradicts another."""


class DataError(TreftError):
    """A dataset row or file cannot be used; the message names file and row."""


class TemplateError(TreftError):
    """The chat template is missing, or has no such region."""


class AttentionError(TreftError):
    """Keys and values cannot be captured with this attention or checkpointing set-up."""


class ReferenceMismatchError(TreftError):
    """A reference belongs to another model, template or prompt."""


class ReferenceStatesError(TreftError):
    """Reference keys or values are unusable (NaN, infinite, or of zero norm)."""


class TemplateDateWarning(UserWarning):
    """The chat template writes today's date into the prefix, so references expire."""


@contextlib.contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Around imports that an extra of treft brings.

    Args:
        extra: its name, such as `eval`.
        what: needs it, at the beginning of the message: `judging needs more packages`.

    Raises:
        ConfigError: a package is missing; names it and the extra.
    """
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"{what} more packages ({error.name} is missing): pip install 'treft[{extra}]'"
        ) from error


def first_line(error: Exception) -> str:
    """The first line of a library's message that says something, and the next if it ends in `:`."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
