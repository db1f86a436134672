"""The steps that studies ask for: methods side by side, patches, perturbed prompts, drift."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from treft.errors import ConfigError
from treft.judging.oracle import ORACLE
from treft.organism.recipes import KindName
from treft.steps.step import Step
from treft.study.answer import Asking, answer_versions
from treft.study.attribution import Drifting, Versions, What, drift, make_versions, score_versions
from treft.study.chains import Chains
from treft.study.model_chains import ModelChains
from treft.study.organism import OrganismChains
from treft.study.protocol import Method, NotPossibleError, Scope, StudyConfig
from treft.study.scores import Scored

BASE, FINETUNED = "base", "finetuned"
"""Rows of the subject as it is, and of its plain finetune, neither of them patched."""
MOST_PERTURBED = 60
"""General questions at most whose prompts are perturbed: each is answered ten times a row."""
NUM_TRIALS, NUM_TOKENS = 10, 10
"""Of section 4.1."""
PATCHED_SCOPES: tuple[Scope, ...] = ("general", "in_domain", "other_narrow")
"""Scopes of questions that are answered under patches."""


def method_steps(
    config: StudyConfig,
    methods: Mapping[str, Method],
    kind: KindName = "prefix",
    with_manners: bool = False,
) -> list[Step[Any]]:
    """Plan all methods on all subjects and seeds, with one recipe for everything else.

    Args:
        config: of the study; its subjects are organisms, or a real model.
        methods: by name.
        kind: of the organism; one that is not shipped is built first, unless organisms are given.
        with_manners: each organism is taught manners first, for twice the steps of a finetune; a
            real model has them.

    Raises:
        ConfigError: a setting is no field of the recipe, or out of range.
        NotPossibleError: a method cannot be had on the given model.
        DataError: a file cannot be used; names file and row.
    """
    chains, methods = _begin(config, methods, kind, with_manners)
    return [
        one.scored(name, method, seed)
        for seed, one, (name, method) in _runs(config, chains, methods)
    ]


def patch_steps(
    config: StudyConfig, patches: Mapping[str, Method], scopes: tuple[Scope, ...] = PATCHED_SCOPES
) -> list[Step[Any]]:
    """Plan each patch of the plain finetunes, and before them both models without one.

    Args:
        config: of the study.
        patches: plain finetunes that are asked under a patch, by name.
        scopes: of questions.

    Raises:
        ConfigError, NotPossibleError, DataError: as `method_steps`; also for a single question.
    """
    unpatched = {BASE: Method(is_base=True), FINETUNED: Method()}
    wanted = {name: replace(one, scopes=scopes) for name, one in {**unpatched, **patches}.items()}
    chains, methods = _begin(config, wanted)
    for one, scope in product(chains, scopes):
        if one.num_asked(methods[FINETUNED], scope) < 2:
            raise ConfigError(f"the number of {scope} answers must be at least 2 here.")
    # An organism's base is no finetune's, so one seed does; a model's is asked with each.
    return [
        one.scored(name, method, seed, row_seeds=True)
        for seed, one, (name, method) in _runs(config, chains, methods)
        if name != BASE or not seed or config.model is not None
    ]


def perturb_steps(config: StudyConfig, rows: Mapping[str, What]) -> list[Step[Any]]:
    """Plan each row on the plain finetunes, and as `base_ROW` on the subject without one.

    A real model's judge says `rephrase`.

    Raises:
        ConfigError, NotPossibleError, DataError: as `method_steps`; also for a single question.
    """
    chains, methods = _begin(config, {"sft": Method()})
    steps: list[Step[Any]] = []
    for one in chains:
        num = min(MOST_PERTURBED, one.num_prompts)
        if num < 2:
            raise ConfigError(
                f"{one.questions}: ask at least two questions here; the number of general ones "
                "must be at least 2."
            )
        tuned = [one.finetuned("sft", methods["sft"], seed) for seed in range(config.num_seeds)]
        for row, what in rows.items():
            versions = _versions(one, row, what, num)
            steps.append(_answered(one, f"{BASE}_{row}", f"{BASE}/{row}", 0, {"prompts": versions}))
            for seed, found in enumerate(tuned):
                read: dict[str, Step[Any]] = {"prompts": versions, "finetune": found}
                steps.append(_answered(one, row, f"seed-{seed}/sft/{row}", seed, read))
    return steps


def drift_steps(config: StudyConfig, methods: Mapping[str, Method]) -> list[Step[Any]]:
    """Drift of the finetunes of all methods, over all general questions; no judge is needed.

    Raises:
        ConfigError, NotPossibleError, DataError: as `method_steps`.
    """
    chains, methods = _begin(config, methods, is_judged=False)
    steps: list[Step[Any]] = []
    for seed, one, (name, method) in _runs(config, chains, methods):
        told = {**one.row_of(name), **one.rendered(method), "judge": ""}
        inputs = {**one.prompts, "finetune": one.finetuned(name, method, seed)}
        label = f"drift/{one.label}/seed-{seed}/{name}"
        moved = Drifting(**told, num_questions=one.num_prompts)
        steps.append(one.on_model(label, drift, moved, inputs, seed))
    return steps


def _runs(
    config: StudyConfig, chains: Sequence[Chains], methods: Mapping[str, Method]
) -> Iterator[tuple[int, Chains, tuple[str, Method]]]:
    """Seeds, then subjects, then methods."""
    return product(range(config.num_seeds), chains, methods.items())


def _begin(
    config: StudyConfig,
    methods: Mapping[str, Method],
    kind: KindName = "prefix",
    with_manners: bool = False,
    *,
    is_judged: bool = True,
) -> tuple[Sequence[Chains], Mapping[str, Method]]:
    """Chains on each subject, and the methods as they are there."""
    if config.model is None:
        return OrganismChains.begin(config, kind, with_manners), methods
    if kind == "no_prefix":
        raise NotPossibleError("it is about a model that has no prefix; --model has one.")
    chains, methods = ModelChains.begin(config, config.model, methods, is_judged=is_judged)
    return [chains], methods


def _versions(one: Chains, row: str, what: What, num: int) -> Step[Versions]:
    """Versions of the prompts, the same for all models."""
    config = Versions(
        **one.rendered(Method()),
        what=what,
        num_questions=num,
        num_trials=NUM_TRIALS,
        num_tokens=NUM_TOKENS,
        max_new_tokens=one.recipe.max_new_tokens,
        rephraser="" if what != "rephrase" or one.judge == ORACLE else one.judge,
    )
    num_calls = num * NUM_TRIALS if config.rephraser else 0
    found = one.on_model(f"prompts/{one.label}/{row}", make_versions, config, one.prompts, 0)
    return replace(found, resources=replace(one.resources, num_calls=num_calls))


def _answered(
    one: Chains, method: str, label: str, seed: int, read: Mapping[str, Step[Any]]
) -> Step[Scored]:
    """Returns what the judge says of a model's answers to the versions of one row.

    Args:
        one: Where the model belongs.
        method: The row's name for this model.
        label: In names of steps.
        seed: Of the finetune, and of the answers.
        read: The versions, and the finetune if there is one.
    """
    name, told = f"{one.label}/{label}", read["prompts"].config
    asking = Asking(
        **{**one.rendered(Method()), "enable_thinking": None},  # prompts are rendered already
        scope="general",
        num_questions=told.num_questions,
        num_samples=1,
        temperature=one.recipe.temperature,
        max_new_tokens=told.max_new_tokens,
    )
    answers = one.on_model(f"answer/{name}", answer_versions, asking, read, seed)
    judged = {"prompts": read["prompts"], "answers": answers}
    resources = one.judging_of(told.num_questions * told.num_trials)
    config = Scored(**one.row_of(method))
    return Step(f"score/{name}", score_versions, config, judged, seed, resources)
