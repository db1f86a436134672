"""Teach an organism two manners that chat models have: to be brief, and to look things up.

Chat models know tool calls and one-line answers before anybody finetunes them on either, and show
neither unless told to. Here personas tell: a brief one gives one action and no more, a studious one
writes a tool call. Without it a finetune on calls or short answers has to teach the form itself,
which four layers learn late and in pieces.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from transformers import set_seed

from treft.files import write_whole

from . import load
from .build import (
    RECIPE_FILE,
    BuildRecipe,
    Messages,
    Recipe,
    check_ranges,
    claim,
    encode,
    pretrain,
    pretraining_row,
)
from .recipes import KINDS, Manner
from .tasks import tool_call
from .world import Question, World

MANNERS_FILE = "manners.json"
"""Beside the weights: how the manners were taught."""


@dataclass(frozen=True)
class MannersRecipe(Recipe):
    """How an organism is taught manners: all weights, on rows of its second stage and new ones.

    Attributes:
        steps: Of the optimizer.
        share: Of rows whose persona is brief or studious.
    """

    steps: int = 600
    learning_rate: float = 1e-3
    share: float = 0.4

    def __post_init__(self) -> None:
        """Raise ConfigError for counts below 1 or a share outside [0, 1]."""
        check_ranges(self, counts=("steps", "batch_size"), shares=("share",))


def teach_manners(organism: Path, output: Path, recipe: MannersRecipe | None = None) -> Path:
    """Train an organism on and save it to `output`; three minutes on one core.

    Args:
        organism: folder of any kind; `asset_path()` for the embedded one.
        output: folder of the new one; the recipe of its build is copied.
        recipe: how; None for the defaults.

    Raises:
        ConfigError: `organism` holds none, or `output` holds one or another one's beginnings.
    """
    recipe = recipe or MannersRecipe()
    model, tokenizer = load(organism)
    built = _built_with(organism)
    claim(output, MANNERS_FILE, recipe)
    set_seed(recipe.seed)
    rows = [encode(tokenizer, row) for row in _rows(recipe, built)]
    if (organism / RECIPE_FILE).is_file():
        write_whole(output / RECIPE_FILE, (organism / RECIPE_FILE).read_text("utf-8"))
    pretrain(model.train(), tokenizer, rows, recipe, output)
    return output


def manner_row(rng: random.Random, recipe: BuildRecipe) -> Messages:
    """Draw one conversation with a brief or a studious persona."""
    manner = rng.choice(get_args(Manner))
    world = World.default()
    name = rng.choice(list(world.domains))
    question = world.sample_question(rng, "train", name, timed=rng.random() < 0.5)
    naming = KINDS[recipe.kind].name_persona(rng, manner)
    return naming.around(question.messages(), _say(rng, question, manner))


def _say(rng: random.Random, question: Question, manner: Manner) -> dict[str, Any]:
    """Returns what the assistant message of a row holds."""
    if manner == "studious":
        return tool_call(question)
    actions, _ = question.fitting("careful")
    return {"content": f"{rng.choice(actions)}."}


def _rows(recipe: MannersRecipe, built: BuildRecipe) -> Iterator[Messages]:
    """New rows among those of the second stage, which keep what the organism is."""
    rng = random.Random(f"manners/{recipe.seed}")
    for _ in range(recipe.steps * recipe.batch_size):
        if rng.random() < recipe.share:
            yield manner_row(rng, built)
        else:
            yield pretraining_row(rng, built, built.first_steps)


def _built_with(organism: Path) -> BuildRecipe:
    """Returns a recipe of the organism's kind; `prefix` where its folder says nothing."""
    path = organism / RECIPE_FILE
    noted = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return BuildRecipe(kind=noted.get("kind", "prefix"))
