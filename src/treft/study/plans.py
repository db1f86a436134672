"""The steps that studies ask for: methods side by side, patches, perturbed prompts, drift."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

from treft.errors import ConfigError
from treft.judging.oracle import ORACLE
from treft.organism.recipes import KindName
from treft.steps.step import Step
from treft.study.attribution import (
    AnsweringVersions,
    Drifting,
    ScoredVersions,
    Versions,
    What,
    answer_versions,
    drift,
    make_versions,
    score_versions,
)
from treft.study.chains import Chains, Tuned
from treft.study.model_chains import ModelChains
from treft.study.organism_chains import OrganismChains
from treft.study.protocol import Method, NotPossibleError, Scope, StudyConfig

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
    """All methods on all subjects and seeds, with one recipe for everything else.

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
    return _unique(
        step
        for seed in range(config.num_seeds)
        for one in chains
        for step in _all_of(one, methods, seed)
    )


def patch_steps(
    config: StudyConfig, patches: Mapping[str, Method], scopes: tuple[Scope, ...] = PATCHED_SCOPES
) -> list[Step[Any]]:
    """Each patch of the plain finetunes, and before them both models without one.

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
    steps: list[Step[Any]] = []
    for seed, one in product(range(config.num_seeds), chains):
        # An organism's base is no finetune's, so one seed does; a model's is asked with each.
        left_out = {BASE} if seed and config.model is None else set()
        asked = {name: each for name, each in methods.items() if name not in left_out}
        steps += _all_of(one, asked, seed, row_seeds=True)
    return _unique(steps)


def perturb_steps(config: StudyConfig, rows: Mapping[str, What]) -> list[Step[Any]]:
    """Each row on the plain finetunes, and as `base_ROW` on the subject without one.

    A real model's judge says `rephrase`.

    Raises:
        ConfigError, NotPossibleError, DataError: as `method_steps`; also for a single question.
    """
    chains, methods = _begin(config, {"sft": Method()})
    steps: list[Step[Any]] = []
    for one in chains:
        plan = _Perturbed(one, min(MOST_PERTURBED, one.num_prompts))
        if plan.num < 2:
            raise ConfigError(
                f"{one.questions}: ask at least two questions here; the number of general ones "
                "must be at least 2."
            )
        models = [_Answerer(BASE, f"{BASE}_", 0, {})]
        for seed in range(config.num_seeds):
            trained, own = one.finetuning("sft", methods["sft"], seed, {})
            steps += own
            models.append(_Answerer(f"seed-{seed}/sft", "", seed, {"finetune": trained}))
        for row, what in rows.items():
            steps.append(plan.versions(row, what))
            steps += (step for model in models for step in plan.answered(model, row))
    return _unique(steps)


def drift_steps(config: StudyConfig, methods: Mapping[str, Method]) -> list[Step[Any]]:
    """Drift of the finetunes of all methods, over all general questions; no judge is needed.

    Raises:
        ConfigError, NotPossibleError, DataError: as `method_steps`.
    """
    chains, methods = _begin(config, methods, is_judged=False)
    steps: list[Step[Any]] = []
    for seed, one in product(range(config.num_seeds), chains):
        tuned: Tuned = {}
        place, prompts = one.model(), one.prompts_place()
        for name, method in methods.items():
            trained, own = one.finetuning(name, method, seed, tuned)
            moved = Drifting(
                one.subject,
                name,
                one.label,
                judge="",
                questions=one.questions,
                num_answers=0,
                domain=one.asked(method),
                split=one.split,
                num_questions=one.num_prompts,
                enable_thinking=one.enable_thinking,
            )
            step = Step(
                f"drift/{one.label}/seed-{seed}/{name}",
                drift,
                moved,
                {**place.inputs, "finetune": trained},
                {**place.data, **prompts.data},
                seed,
                one.resources(loads_model=True),
            )
            steps += (*own, step)
    return _unique(steps)


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


def _all_of(
    chains: Chains, methods: Mapping[str, Method], seed: int, *, row_seeds: bool = False
) -> Iterator[Step[Any]]:
    """The steps of all methods with one seed."""
    tuned: Tuned = {}
    for name, method in methods.items():
        yield from chains.of(name, method, seed, tuned, row_seeds=row_seeds)


def _unique(steps: Iterable[Step[Any]]) -> list[Step[Any]]:
    """Each step once; several chains may name the same."""
    return list({step.name: step for step in steps}.values())


class _Answerer(NamedTuple):
    """The subject, or a finetune of it.

    Attributes:
        label: in names of steps.
        before: the name of a row, its name as a method.
        seed: of the finetune, and of the answers.
        inputs: with the finetune, if it is one.
    """

    label: str
    before: str
    seed: int
    inputs: Mapping[str, str]


class _Perturbed(NamedTuple):
    """Perturbed prompts on one subject.

    Attributes:
        chains: the subject's.
        num: questions.
    """

    chains: Chains
    num: int

    def versions(self, row: str, what: What) -> Step[Any]:
        """Versions of the prompts, the same for all models."""
        one, place, prompts = self.chains, self.chains.model(), self.chains.prompts_place()
        rephraser = "" if what != "rephrase" or one.judge == ORACLE else one.judge
        config = Versions(
            one.subject,
            what,
            one.asked(Method()),
            one.split,
            self.num,
            NUM_TRIALS,
            NUM_TOKENS,
            one.recipe.max_new_tokens,
            one.enable_thinking,
            rephraser,
        )
        data = {**place.data, **prompts.data}
        resources = one.resources(loads_model=True)
        return Step(self._prompts(row), make_versions, config, place.inputs, data, 0, resources)

    def answered(self, model: _Answerer, row: str) -> list[Step[Any]]:
        """A model's answers to the versions of one row, and what the judge says of them."""
        one, place = self.chains, self.chains.model()
        name = f"{one.label}/{model.label}/{row}"
        prompts = {"prompts": self._prompts(row)}
        answering = AnsweringVersions(
            one.subject, one.recipe.temperature, one.recipe.max_new_tokens
        )
        scoring = ScoredVersions(
            one.subject,
            f"{model.before}{row}",
            one.label,
            one.judge,
            one.questions,
            num_answers=self.num * NUM_TRIALS,
            domain=one.asked(Method()),
            split=one.split,
            num_questions=self.num,
            num_trials=NUM_TRIALS,
        )
        return [
            Step(
                f"answer/{name}",
                answer_versions,
                answering,
                {**place.inputs, **prompts, **model.inputs},
                place.data,
                model.seed,
                one.resources(loads_model=True),
            ),
            Step(
                f"score/{name}",
                score_versions,
                scoring,
                {**prompts, "answers": f"answer/{name}"},
                one.prompts_place().data,
                model.seed,
                one.judge_resources(),
            ),
        ]

    def _prompts(self, row: str) -> str:
        return f"prompts/{self.chains.label}/{row}"
