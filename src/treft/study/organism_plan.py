"""Chains of steps on organisms: finetune, answer in two scopes, score; one chain a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from treft.errors import ConfigError
from treft.study.organism_work import Answering, Finetune, Scoring, answer, finetune, score
from treft.study.protocol import StudyConfig
from treft.study.step import Step

if TYPE_CHECKING:
    from treft.organism import FinetuneRecipe
    from treft.regions import RegionName

__all__ = ["Method", "method_steps"]

EMBEDDED = "embedded"


@dataclass(frozen=True)
class Method:
    """How a finetune is kept narrow; with neither held regions nor interleaved rows it is not.

    Attributes:
        held: regions that TReFT holds, with the recipe's λ.
        interleave: which other domains careful rows come from.
        interleaved_share: of the rows; None for the recipe's.
    """

    held: tuple[RegionName, ...] = ()
    interleave: Literal["none", "narrow", "all"] = "none"
    interleaved_share: float | None = None


@dataclass(frozen=True)
class _Run:
    """One method, seed and organism."""

    name: str
    method: Method
    organism: str
    folder: Path
    seed: int


def method_steps(config: StudyConfig, methods: Mapping[str, Method]) -> list[Step[Any]]:
    """All methods on all organisms and seeds, with one recipe for everything else.

    Raises:
        ConfigError: a setting is no field of the recipe, or out of range.
    """
    recipe = _recipe(config.settings)
    return [
        step
        for seed in range(config.num_seeds)
        for organism, folder in _organisms(config).items()
        for name, method in methods.items()
        for step in _chain(_Run(name, method, organism, folder, seed), recipe, config.split)
    ]


def _chain(
    run: _Run, recipe: FinetuneRecipe, split: Literal["validation", "test"]
) -> Iterator[Step[Any]]:
    label = f"{run.organism}/seed-{run.seed}/{run.name}"
    organism = {"organism": run.folder}
    trained = f"finetune/{label}"
    yield Step(trained, finetune, _finetune(run.method, recipe), data=organism, seed=run.seed)
    asked = {
        scope: Answering(
            recipe.domain, scope, split, num, recipe.temperature, recipe.max_new_tokens
        )
        for scope, num in _scopes(recipe)
    }
    for scope, answering in asked.items():
        inputs = {"finetune": trained}
        yield Step(
            f"answer/{label}/{scope}", answer, answering, inputs, data=organism, seed=run.seed
        )
    scoring = Scoring(run.name, run.organism, asked["general"], asked["in_domain"])
    answers: dict[str, str] = {scope: f"answer/{label}/{scope}" for scope in asked}
    yield Step(f"score/{label}", score, scoring, answers, seed=run.seed)


def _scopes(recipe: FinetuneRecipe) -> tuple[tuple[Literal["general", "in_domain"], int], ...]:
    return ("general", recipe.num_general), ("in_domain", recipe.num_in_domain)


def _finetune(method: Method, recipe: FinetuneRecipe) -> Finetune:
    """Only what the method uses, so that equal finetunes of two studies are one step."""
    own = ("interleave", "interleaved_share", "held", "kv_weight")
    shared = {
        entry.name: getattr(recipe, entry.name)
        for entry in fields(Finetune)
        if entry.name not in own
    }
    share = method.interleaved_share
    if share is None:
        share = recipe.interleaved_share
    return Finetune(
        **shared,
        interleave=method.interleave,
        interleaved_share=share if method.interleave != "none" else 0.0,
        held=method.held,
        kv_weight=recipe.kv_weight if method.held else 0.0,
    )


def _recipe(settings: Mapping[str, Any]) -> FinetuneRecipe:
    from pydantic import TypeAdapter, ValidationError

    from treft.organism import FinetuneRecipe

    known = [entry.name for entry in fields(FinetuneRecipe)]
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise ConfigError(f"no such setting: {', '.join(unknown)}; there are {', '.join(known)}.")
    try:
        return TypeAdapter(FinetuneRecipe).validate_python(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "settings"
        raise ConfigError(f"{where}: {first['msg']}, not {first['input']!r}.") from error


def _organisms(config: StudyConfig) -> dict[str, Path]:
    from treft.organism import asset_path

    named = {path.resolve().name: path.resolve() for path in config.organisms}
    return named or {EMBEDDED: asset_path()}
