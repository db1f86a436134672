"""Sets of conditions: JSONL files, those that come with the package or the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from treft.data.messages import read_rows
from treft.errors import ConfigError, DataError
from treft.evaluation.conditions import (
    DEFAULT,
    DefaultCondition,
    FixedCondition,
    NoSystemCondition,
    ParaphraseCondition,
    PerturbedCondition,
    SystemCondition,
    TrainingCondition,
    TrainingTurnsCondition,
)

_SETS = files("treft.evaluation") / "condition_sets"

AnyCondition = Annotated[
    DefaultCondition
    | NoSystemCondition
    | SystemCondition
    | ParaphraseCondition
    | TrainingCondition
    | TrainingTurnsCondition
    | PerturbedCondition
    | FixedCondition,
    Field(discriminator="kind"),
]
_ROW: TypeAdapter[AnyCondition] = TypeAdapter(AnyCondition)


def shipped_conditions() -> list[str]:
    """Names of the sets that come with the package."""
    names = (entry.name for entry in _SETS.iterdir())
    return sorted(name.removesuffix(".jsonl") for name in names if name.endswith(".jsonl"))


def load_conditions(
    source: str | Path, only: Sequence[str] = (), skip: Sequence[str] = ()
) -> tuple[AnyCondition, ...]:
    """Returns a set of conditions, checked.

    Args:
        source: Name of a shipped set, or path of a JSONL file.
        only: Names of conditions to take besides the default; none means all.
        skip: Names of conditions to leave out.

    Raises:
        ConfigError: There is no such set, a name is none of its conditions', or the default is to
            be left out.
        DataError: a row is no condition, a name comes twice, or `default` is missing.
    """
    text = str(source)
    path = Path(str(_SETS / f"{text}.jsonl")) if text in shipped_conditions() else Path(text)
    if not path.is_file():
        raise ConfigError(
            f"there are no conditions {text}: give a JSONL file, or one of "
            f"{', '.join(shipped_conditions())}."
        )
    found: dict[str, AnyCondition] = {}
    for row, where in read_rows(path):
        condition = _condition(row, where)
        if condition.name in found:
            raise DataError(f"{where}: the name {condition.name} comes twice.")
        found[condition.name] = condition
    if DEFAULT not in found:
        raise DataError(
            f"{path}: no condition is named {DEFAULT}, which the others are compared with; add "
            f'{{"name": "{DEFAULT}", "kind": "default"}}.'
        )
    if unknown := [name for name in (*only, *skip) if name not in found]:
        raise ConfigError(f"no condition is called {unknown[0]}; there are {', '.join(found)}.")
    if DEFAULT in skip:
        raise ConfigError(f"the others are compared with the condition {DEFAULT}: keep it.")
    kept = ({DEFAULT, *only} if only else set(found)) - set(skip)
    return tuple(found[name] for name in found if name in kept)


def _condition(row: Any, where: str) -> AnyCondition:
    try:
        return _ROW.validate_python(row)
    except ValidationError as error:
        problem = error.errors()[0]
        # The first part of a place inside a row is its kind.
        place = ".".join(map(str, problem["loc"][1:]))
        raise DataError(f"{where}{f', {place}' if place else ''}: {problem['msg']}.") from None
