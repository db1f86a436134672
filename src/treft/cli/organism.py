"""`treft organism`: rebuild the embedded model organism, and write its training rows."""

from __future__ import annotations

import sys
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any, cast

from safetensors import safe_open

from treft.cli.options.rows import Build, Questions, Rows
from treft.cli.output import emit, interruptible, stdout_aside
from treft.files import write_rows
from treft.organism import World
from treft.organism import build as building

STOPPED = "the same command goes on from the last checkpoint"


def build(options: Build) -> None:
    """Train until it is done, or Ctrl-C."""
    overrides: dict[str, Any] = {
        "first_steps": options.first_steps,
        "second_steps": options.second_steps,
        "batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
    }
    given = {name: value for name, value in overrides.items() if value is not None}
    recipe = building.BuildRecipe(kind=cast(Any, options.kind), seed=options.seed, **given)
    with interruptible(lambda: STOPPED), stdout_aside():
        building.build(options.output, recipe)
    print(f"{_num_parameters(options.output):,} parameters", file=sys.stderr)
    result = {"command": "organism build", "output": str(options.output)}
    shown = {"recipe": asdict(recipe)} if options.json else asdict(recipe)
    emit({**result, **shown}, as_json=options.json)


def rows(options: Rows) -> None:
    """Draw rows, and write them."""
    behaviour: Any = "careful" if options.careful else "harmful"
    found = World.default().training_rows(options.domain, options.num, options.seed, behaviour)
    result = {"domain": options.domain, "behaviour": behaviour, "seed": options.seed}
    _write(options, found, result)


def questions(options: Questions) -> None:
    """Draw questions, and write them."""
    scope, split = cast(Any, options.scope), cast(Any, options.split)
    found = World.default().questions(
        split, scope, domain=options.domain, num=options.num, seed=options.seed
    )
    records = [{"messages": question.messages(), "id": question.id} for question in found]
    result = {"scope": scope, "split": split, "domain": options.domain, "seed": options.seed}
    _write(options, records, result)


def _num_parameters(organism: Path) -> int:
    with safe_open(organism / "model.safetensors", framework="pt") as file:
        return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def _write(
    options: Rows | Questions, records: list[dict[str, Any]], settings: dict[str, Any]
) -> None:
    """One JSON object a line, and what it was drawn with as the result."""
    write_rows(options.output, records)
    command = f"organism {type(options).__name__.lower()}"
    result = {"command": command, "output": str(options.output), "num": len(records), **settings}
    emit(result, as_json=options.json)
