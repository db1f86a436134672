"""Chains of steps on organisms: finetune, answer in each scope, score; one chain a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from treft.steps.step import Resources, Step
from treft.study.method import Method
from treft.study.model_plan import model_steps
from treft.study.organism_score import Scoring, score
from treft.study.organism_work import (
    Answering,
    Building,
    Finetune,
    Scope,
    Teaching,
    answer,
    build,
    finetune,
    teach,
)
from treft.study.protocol import NotPossibleError, StudyConfig, read_settings

if TYPE_CHECKING:
    from treft.organism import FinetuneRecipe
    from treft.organism.recipes import KindName


EMBEDDED = "embedded"
TASK_TOKENS = 96
"""Cap of an answer to a finetune that teaches a sentence or a tool call."""


@dataclass(frozen=True)
class Source:
    """Where a step finds its organism: `inputs` and `data` of a `Step`, and what it runs on."""

    inputs: Mapping[str, str]
    data: Mapping[str, Path]
    resources: Resources


@dataclass(frozen=True)
class Run:
    """One method, seed and organism.

    Attributes:
        method: its name.
        organism: name of the organism.
        seed: of the finetune.
        trained: name of the finetune step; empty for the base.
        source: where a step finds the organism.
    """

    method: str
    organism: str
    seed: int
    trained: str
    source: Source


def method_steps(
    config: StudyConfig,
    methods: Mapping[str, Method],
    kind: KindName = "prefix",
    with_manners: bool = False,
) -> list[Step[Any]]:
    """All methods on all organisms and seeds, with one recipe for everything else.

    With `config.model` they are on that model instead (`treft.study.model_plan`).

    Args:
        config: of the study.
        methods: by name.
        kind: of the organism; one that is not shipped is built first, unless organisms are given.
        with_manners: each organism is taught manners first, for twice the steps of a finetune; a
            real model has them.

    Raises:
        ConfigError: a setting is no field of the recipe, or out of range.
        NotPossibleError: a method cannot be had on the given model.
    """
    if config.model is not None:
        if kind == "no_prefix":
            raise NotPossibleError("it is about a model that has no prefix; --model has one.")
        return model_steps(config, config.model, methods)
    recipe = _recipe(config)
    steps, runs = finetunes(config, methods, kind, with_manners)
    for run in runs:
        method = methods[run.method]
        own = recipe if method.domain is None else replace(recipe, domain=method.domain)
        steps += _asking(run, method, own, config.split)
    return steps


def finetunes(
    config: StudyConfig,
    methods: Mapping[str, Method],
    kind: KindName = "prefix",
    with_manners: bool = False,
) -> tuple[list[Step[Any]], list[Run]]:
    """Only the finetunes of `method_steps`, each once, and who uses which.

    Raises:
        ConfigError: as `method_steps`.
    """
    recipe = _recipe(config)
    steps = _builds(config, kind)
    sources = _organisms(config, kind)
    if with_manners:
        steps += [_teaching(name, source, 2 * recipe.max_steps) for name, source in sources.items()]
        sources = {
            name: replace(source, inputs={"organism": _taught(name)})
            for name, source in sources.items()
        }
    runs: list[Run] = []
    for seed in range(config.num_seeds):
        for organism, source in sources.items():
            known: dict[Finetune, str] = {}
            for name, method in methods.items():
                trained = ""
                if not method.is_base:
                    wanted = _finetune(method, recipe)
                    trained = known.get(wanted, f"finetune/{organism}/seed-{seed}/{name}")
                    if wanted not in known:
                        known[wanted] = trained
                        steps.append(
                            Step(
                                trained,
                                finetune,
                                wanted,
                                source.inputs,
                                source.data,
                                seed,
                                source.resources,
                            )
                        )
                runs.append(Run(name, organism, seed, trained, source))
    return steps, runs


def _asking(
    run: Run, method: Method, recipe: FinetuneRecipe, split: Literal["validation", "test"]
) -> Iterator[Step[Any]]:
    label = f"{run.organism}/seed-{run.seed}/{run.method}"
    scopes: tuple[Scope, ...] = get_args(Scope)
    asked = {s: _answering(method, recipe, s, split) for s in scopes if s in method.scopes}
    inputs = {**run.source.inputs, **({"finetune": run.trained} if run.trained else {})}
    data, resources = run.source.data, run.source.resources
    for scope, answering in asked.items():
        name = f"answer/{label}/{scope}"
        yield Step(name, answer, answering, inputs, data, run.seed, resources)
    answers: dict[str, str] = {scope: f"answer/{label}/{scope}" for scope in asked}
    scoring = Scoring(run.method, run.organism, asked)
    yield Step(f"score/{label}", score, scoring, answers, data, run.seed)


def _answering(
    method: Method, recipe: FinetuneRecipe, scope: Scope, split: Literal["validation", "test"]
) -> Answering:
    return Answering(
        domain=recipe.domain,
        scope=scope,
        split=split,
        num=recipe.num_general if scope == "general" else recipe.num_in_domain,
        temperature=recipe.temperature,
        max_new_tokens=recipe.max_new_tokens if method.task == "advice" else TASK_TOKENS,
        task=method.task,
        patch=method.patch,
        num_positions=method.num_positions,
        system_prompt=method.answer_system,
        alpha=method.alpha,
        steering=method.steering,
    )


def _finetune(method: Method, recipe: FinetuneRecipe) -> Finetune:
    """Only what the method uses, so that equal finetunes of two studies are one step."""
    chosen = {name: value for name, value in vars(method).items() if value is not None}
    known = {entry.name for entry in fields(Finetune)}
    given = {name: value for name, value in (vars(recipe) | chosen).items() if name in known}
    given["max_steps"] = max(1, round(recipe.max_steps * method.step_share))
    if method.interleave == "none":
        given["interleaved_share"] = 0.0
    if not method.held:
        given["kv_weight"] = 0.0
    return Finetune(**given)


def _recipe(config: StudyConfig) -> FinetuneRecipe:
    """The organism's, with the study's settings."""
    from treft.organism import FinetuneRecipe

    return read_settings(FinetuneRecipe, config.settings)


def _builds(config: StudyConfig, kind: KindName) -> list[Step[Any]]:
    """The step that trains an organism which is not shipped."""
    if config.organisms or kind == "prefix":
        return []
    return [Step(_built(kind), build, Building(kind), seed=0, resources=Resources(cpus=2))]


def _built(kind: KindName) -> str:
    return f"organism/{kind}-0"


def _teaching(organism: str, source: Source, steps: int) -> Step[Any]:
    return Step(
        _taught(organism),
        teach,
        Teaching(steps),
        source.inputs,
        source.data,
        seed=0,
        resources=source.resources,
    )


def _taught(organism: str) -> str:
    return f"organism/{organism}-with-manners"


def _organisms(config: StudyConfig, kind: KindName) -> dict[str, Source]:
    """Organisms by name."""
    from treft.models.loading import asset_path

    if not config.organisms and kind != "prefix":
        return {f"{kind}-0": Source({"organism": _built(kind)}, {}, Resources())}
    named = {path.resolve().name: path.resolve() for path in config.organisms}
    folders = named or {EMBEDDED: asset_path()}
    return {name: Source({}, {"organism": path}, Resources()) for name, path in folders.items()}
