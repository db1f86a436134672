"""Sets of conditions: JSONL files, those that come with the package or the user's own."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from treft.data.messages import read_rows
from treft.errors import ConfigError, DataError
from treft.evaluation.conditions import (
    DEFAULT,
    Condition,
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

_Row = Annotated[
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
_ROW: TypeAdapter[Condition] = TypeAdapter(_Row)


def shipped_conditions() -> list[str]:
    """Names of the sets that come with the package."""
    names = (entry.name for entry in _SETS.iterdir())
    return sorted(name.removesuffix(".jsonl") for name in names if name.endswith(".jsonl"))


def load_conditions(source: str | Path) -> tuple[Condition, ...]:
    """Load and check a set of conditions.

    Args:
        source: name of a shipped set, or path of a JSONL file.

    Raises:
        ConfigError: there is no such set.
        DataError: a row is no condition, a name comes twice, or `default` is missing.
    """
    text = str(source)
    path = Path(str(_SETS / f"{text}.jsonl")) if text in shipped_conditions() else Path(text)
    if not path.is_file():
        raise ConfigError(
            f"there are no conditions {text}: give a JSONL file, or one of "
            f"{', '.join(shipped_conditions())}."
        )
    found: dict[str, Condition] = {}
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
    return tuple(found.values())


def _condition(row: Any, where: str) -> Condition:
    try:
        return _ROW.validate_python(row)
    except ValidationError as error:
        problem = error.errors()[0]
        # The first part of a place inside a row is its kind.
        place = ".".join(map(str, problem["loc"][1:]))
        raise DataError(f"{where}{f', {place}' if place else ''}: {problem['msg']}.") from None
