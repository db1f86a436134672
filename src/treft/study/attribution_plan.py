"""Steps of attribution studies: what is run on the finetunes that other studies share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from treft.errors import ConfigError
from treft.steps.step import Step
from treft.study.attribution_prompts import What
from treft.study.attribution_work import (
    Asking,
    Drifting,
    Patch,
    Patching,
    Perturbing,
    drift,
    patch,
    perturb,
)
from treft.study.method import Method
from treft.study.model_attribution_plan import model_drift_steps, model_perturb_steps
from treft.study.model_plan import model_steps
from treft.study.organism_plan import method_steps
from treft.study.organism_work import Answering
from treft.study.protocol import StudyConfig

if TYPE_CHECKING:
    from treft.study.organism_work import Scope


BASE, FINETUNED = "base", "finetuned"
"""Rows of the organism as it is, and of its plain finetune, neither of them patched."""

MOST_PERTURBED = 60
"""General questions at most whose prompts are perturbed: each is answered ten times a row."""

SFT = {"sft": Method()}

SCOPES: tuple[Scope, ...] = ("general", "in_domain", "other_narrow")
"""Of questions that are answered under patches."""


class FinetuneKey(NamedTuple):
    """Which finetune."""

    organism: str
    seed: int
    method: str


def perturb_steps(config: StudyConfig, rows: Mapping[str, What]) -> list[Step[Any]]:
    """Each row on the plain finetunes, and as `base_ROW` on the organism without one.

    With `config.model` they are of that model, and its judge rephrases.

    Raises:
        ConfigError: a setting is no field of the recipe, or out of range, or a single question is
            to be asked.
        NotPossibleError: as `patch_steps`.
    """
    if config.model is not None:
        return model_perturb_steps(config, config.model, rows, MOST_PERTURBED, BASE)
    chains = _Chains.of(config, SFT)
    num = min(MOST_PERTURBED, chains.general.num)
    steps = list(chains.finetunes.values())
    for row, what in rows.items():
        for key, trained in chains.finetunes.items():
            tuned = Perturbing(row, key.organism, chains.asked, num, what)
            steps.append(_on(trained, f"perturb/{_label(key)}/{row}", perturb, tuned))
        for organism, trained in chains.organisms.items():
            name = f"{BASE}_{row}"
            own = Perturbing(name, organism, chains.asked, num, what)
            steps.append(_without(trained, f"perturb/{organism}/{name}", perturb, own))
    return steps


def patch_steps(
    config: StudyConfig, patches: Mapping[str, Patch], scopes: tuple[Scope, ...] = SCOPES
) -> list[Step[Any]]:
    """Each patch of the plain finetunes, and before them both models without one.

    With `config.model` they are on that model.

    Args:
        config: of the study.
        patches: by name.
        scopes: of questions, for a model; organisms are asked all.

    Raises:
        ConfigError: as `perturb_steps`.
        NotPossibleError: the given model lacks a file or a judge.
    """
    if config.model is not None:
        unpatched = {BASE: Method(is_base=True, scopes=scopes), FINETUNED: Method(scopes=scopes)}
        patched = {name: _patched(one, scopes) for name, one in patches.items()}
        return model_steps(config, config.model, {**unpatched, **patched})
    chains = _Chains.of(config, SFT)
    nums = chains.nums
    steps = list(chains.finetunes.values())
    for organism, trained in chains.organisms.items():
        own = Patching(BASE, organism, chains.asked, nums)
        steps.append(_without(trained, f"patch/{organism}/{BASE}", patch, own))
    for name, one in {FINETUNED: Patch(), **patches}.items():
        for key, trained in chains.finetunes.items():
            tuned = Patching(name, key.organism, chains.asked, nums, one)
            steps.append(_on(trained, f"patch/{_label(key)}/{name}", patch, tuned))
    return steps


def drift_steps(config: StudyConfig, methods: Mapping[str, Method]) -> list[Step[Any]]:
    """Drift of the finetunes of all methods.

    Raises:
        ConfigError: as `perturb_steps`.
        NotPossibleError: as `patch_steps`.
    """
    if config.model is not None:
        return model_drift_steps(config, config.model, methods)
    chains = _Chains.of(config, methods)
    asked, num = chains.asked, chains.general.num
    steps = list(chains.finetunes.values())
    for key, trained in chains.finetunes.items():
        moved = Drifting(key.method, key.organism, asked.domain, asked.split, num)
        steps.append(_on(trained, f"drift/{_label(key)}", drift, moved))
    return steps


def _patched(patch: Patch, scopes: tuple[Scope, ...]) -> Method:
    """A plain finetune that is asked under a patch."""
    return Method(
        patch=patch.regions,
        num_positions=patch.num_positions,
        kinds=patch.kinds,
        window=patch.window,
        stream_layer=patch.stream_layer,
        scopes=scopes,
    )


class _Chains(NamedTuple):
    """Finetunes of some methods, and how other studies question them."""

    finetunes: dict[FinetuneKey, Step[Any]]
    general: Answering
    in_domain: Answering

    @classmethod
    def of(cls, config: StudyConfig, methods: Mapping[str, Method]) -> _Chains:
        steps = method_steps(config, methods)
        found = {_key(step): step for step in steps if step.name.startswith("finetune/")}
        asked = [step.config for step in steps if isinstance(step.config, Answering)]
        general, in_domain = (
            next(one for one in asked if one.scope == scope) for scope in ("general", "in_domain")
        )
        if min(general.num, in_domain.num) < 2:
            raise ConfigError("num_general and num_in_domain must be at least 2 here.")
        return cls(found, general, in_domain)

    @property
    def asked(self) -> Asking:
        """The same for all."""
        one = self.general
        return Asking(one.domain, one.split, one.temperature, one.max_new_tokens)

    @property
    def nums(self) -> tuple[tuple[Scope, int], ...]:
        """Questions of each scope."""
        num = self.in_domain.num
        return tuple((scope, self.general.num if scope == "general" else num) for scope in SCOPES)

    @property
    def organisms(self) -> dict[str, Step[Any]]:
        """A finetune of each organism, which knows its folder."""
        found: dict[str, Step[Any]] = {}
        for key, step in self.finetunes.items():
            found.setdefault(key.organism, step)
        return found


def _key(step: Step[Any]) -> FinetuneKey:
    _, organism, seed, method = step.name.split("/")
    assert seed == f"seed-{step.seed}", step.name
    return FinetuneKey(organism, step.seed or 0, method)


def _label(key: FinetuneKey) -> str:
    return f"{key.organism}/seed-{key.seed}/{key.method}"


def _on(trained: Step[Any], name: str, function: Any, config: Any) -> Step[Any]:
    """A step on a finetune, with its seed."""
    inputs = {**trained.inputs, "finetune": trained.name}
    return Step(name, function, config, inputs, trained.data, trained.seed, trained.resources)


def _without(trained: Step[Any], name: str, function: Any, config: Any) -> Step[Any]:
    """A step on the organism of a finetune."""
    return Step(name, function, config, trained.inputs, trained.data, 0, trained.resources)
