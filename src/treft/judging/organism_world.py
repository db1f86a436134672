"""Which of the organism's worlds a model knows, by its name: its questions are of no other."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from treft.errors import ConfigError
from treft.models.loading import model_path
from treft.organism import WorldName, world_of
from treft.organism.sizes import RECIPE_FILE

ADAPTER_CONFIG = "adapter_config.json"


def world_of_models(names: Iterable[str]) -> WorldName:
    """The world of the organism that these models are, or were finetuned from.

    A folder says so by the recipe that `treft organism build` left in it, an adapter by the base
    that it names. A model finetuned whole has no recipe: name its base, too.

    Args:
        names: folders of models or adapters, or `organism`; hub ids say nothing.

    Returns:
        `default` where none says anything.

    Raises:
        ConfigError: two of them know different worlds, or a recipe names a world that is none.
    """
    found: dict[WorldName, str] = {}
    for name in names:
        folder = _folder(name)
        if folder is not None and (folder / RECIPE_FILE).is_file():
            found.setdefault(world_of(folder), name)
    if len(found) > 1:
        told = " and ".join(f"{name} ({world})" for world, name in found.items())
        raise ConfigError(
            f"{told} know different worlds, and no question is of both: ask each alone."
        )
    return next(iter(found), "default")


def _folder(name: str) -> Path | None:
    """Where a model is, or the base of an adapter; None if that is no folder."""
    try:
        folder = Path(model_path(name))
    except ConfigError:
        return None  # whoever loads `name` says what is wrong with it
    if (folder / ADAPTER_CONFIG).is_file():
        config = json.loads((folder / ADAPTER_CONFIG).read_text("utf-8"))
        base = config.get("base_model_name_or_path")
        return _folder(base) if base and base != name else None
    return folder if folder.is_dir() else None
