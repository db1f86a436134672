"""The sizes of organism: architecture, world and finetune; and which of them a folder holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from treft.errors import ConfigError

from .recipe import FinetuneRecipe
from .world import WorldName

RECIPE_FILE = "recipe.json"
"""Beside the weights: what the organism was built with; `world` where it is not the default."""
SizeName = Literal["small", "large"]


@dataclass(frozen=True)
class Size:
    """What a size of organism is, whatever its kind and seed.

    Attributes:
        world: that it knows; each size has one of its own.
        vocab_size: of the tokenizer, at most.
        num_texts: rows that the tokenizer is trained on.
        hidden_size: D of the residual stream.
        intermediate_size: of each MLP.
        num_layers: decoder layers.
        num_heads: attention heads, as many for keys and values.
        warmup_steps: of pretraining.
        runs_on_gpu: uses a CUDA device where there is one, in bf16 while it is trained; the others
            stay on the CPU, so that their results do not depend on the machine.
        finetune: the narrow finetune's recipe.
    """

    world: WorldName
    vocab_size: int
    num_texts: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    warmup_steps: int
    runs_on_gpu: bool
    finetune: FinetuneRecipe


SIZES: dict[SizeName, Size] = {
    "small": Size("default", 2048, 6000, 128, 384, 4, 4, 50, False, FinetuneRecipe()),
    "large": Size(
        world="large",
        vocab_size=8192,
        num_texts=24_000,
        hidden_size=512,
        intermediate_size=1536,
        num_layers=12,
        num_heads=8,
        warmup_steps=200,
        runs_on_gpu=True,
        # Untuned: to be chosen on validation questions once there is an organism to try it on.
        finetune=FinetuneRecipe(
            num_rows=8000, max_steps=400, learning_rate=2e-4, warmup_steps=20, max_new_tokens=36
        ),
    ),
}


BY_WORLD: dict[WorldName, Size] = {size.world: size for size in SIZES.values()}


def world_of(organism: Path | None) -> WorldName:
    """The world that an organism knows; None for the embedded one.

    Raises:
        ConfigError: the folder's recipe names a world that is none.
    """
    return size_of(organism).world


def size_of(organism: Path | None) -> Size:
    """The size of an organism; None for the embedded one.

    A folder whose recipe names no world, or without a recipe, holds a small one.

    Raises:
        ConfigError: the folder's recipe names a world that is none.
    """
    world = noted_recipe(organism).get("world", "default")
    found = BY_WORLD.get(world)
    if found is None:
        raise ConfigError(
            f"{organism}/{RECIPE_FILE} names the world {world!r}, which this treft does not know"
        )
    return found


def noted_recipe(organism: Path | None) -> dict[str, Any]:
    """What an organism's folder says it was built with; nothing where it says nothing."""
    path = None if organism is None else organism / RECIPE_FILE
    return dict(json.loads(path.read_text("utf-8"))) if path is not None and path.is_file() else {}


def finetune_recipe(organisms: Sequence[Path]) -> FinetuneRecipe:
    """The recipe for finetunes of these organisms; none for the embedded one.

    Raises:
        ConfigError: they differ in size, so that one recipe cannot be for all.
    """
    sizes = {size_of(organism).world: size_of(organism) for organism in organisms or (None,)}
    if len(sizes) > 1:
        raise ConfigError("the organisms differ in size; run each size by itself")
    return next(iter(sizes.values())).finetune
