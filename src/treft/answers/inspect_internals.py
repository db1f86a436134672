"""What is taken from Inspect without a public name, all of it here.

`tests/unit/evaluation/test_inspect_internals.py` fails where a release of Inspect changes it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from inspect_ai._util.error import PrerequisiteError
from inspect_ai.model import GenerateConfig
from inspect_ai.model._generate_config import active_generate_config
from rich.markup import escape

from treft.errors import TreftError

P = ParamSpec("P")
R = TypeVar("R")


def running_config() -> GenerateConfig:
    """Returns what is set for the evaluation that runs.

    A seed given to `eval()` beside a model that is loaded already is in no public place that a
    solver sees. A hook sees it, but Inspect announces hooks at every command of everybody who has
    this package.
    """
    return active_generate_config()


def errors_in_one_line(make: Callable[P, R]) -> Callable[P, R]:
    """Have Inspect's commands print our errors as one line, where others get a traceback.

    For what Inspect calls before anything runs: tasks, scorers, the provider. Errors stay what they
    were to whoever catches them.
    """

    @wraps(make)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return make(*args, **kwargs)
        except PrerequisiteError:
            raise
        except TreftError as error:
            raise _for_inspect(error) from error.__cause__

    return called


def _for_inspect(error: TreftError) -> TreftError:
    """Returns the same error, which is one of Inspect's besides, with its message escaped."""
    kind = type(error)
    both: Any = type(kind.__name__, (kind, PrerequisiteError), {"__module__": kind.__module__})
    found: TreftError = both(str(error))
    found.message = escape(f"ERROR: {error}")  # type: ignore[attr-defined]
    return found
