"""Packages that only some of treft needs: one line says which extra to install."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from treft.errors import ConfigError


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
