"""Chains of steps on a real model: split its rows, finetune, answer with Inspect, judge."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from treft.errors import ConfigError
from treft.steps.step import Resources, Step
from treft.study.method import Method
from treft.study.model_attribution import Drifting
from treft.study.model_files import CAREFUL, CONTRAST, WHOLE_SETS, ModelFiles
from treft.study.model_scores import Detecting, Judging, Scored, detect, score
from treft.study.model_setup import ModelRecipe, ModelSetup
from treft.study.model_training import Tuning, finetune
from treft.study.model_work import OTHER, UTILITY, Asking, Splitting, answer, split
from treft.study.protocol import read_settings

if TYPE_CHECKING:
    from treft.chat.regions import RegionName
    from treft.organism.tasks import TaskName
    from treft.study.method import Scope
    from treft.study.protocol import StudyConfig


ORGANISM_RATE = 8.5e-4
"""Learning rate of the organism's recipe: a method's own rate keeps its ratio to the recipe's."""
LOCAL_JUDGES = ("hf/", "treft/", "vllm/", "sglang/")
"""Inspect's providers that run a model in the step's own process or beside it."""


def model_steps(
    config: StudyConfig, setup: ModelSetup, methods: Mapping[str, Method]
) -> list[Step[Any]]:
    """All methods and seeds on one model, with one recipe for everything else.

    Strengths of methods that are not here are left alone; see `check_strengths`.

    Args:
        config: of the study.
        setup: the model.
        methods: by name.

    Raises:
        ConfigError, NotPossibleError, DataError: as `ModelChains.begin`.
    """
    chains, methods = ModelChains.begin(config, setup, methods)
    steps: dict[str, Step[Any]] = {}
    for seed in range(config.num_seeds):
        tuned: dict[tuple[Any, ...], str] = {}
        for name, method in methods.items():
            for step in chains.of(name, method, seed, tuned):
                steps.setdefault(step.name, step)
    return list(steps.values())


def check_strengths(setup: ModelSetup, steps: Iterable[Step[Any]]) -> None:
    """See that each strength is some method's.

    Args:
        setup: with the strengths.
        steps: of all studies that will run.

    Raises:
        ConfigError: one is not.
    """
    configs = [step.config for step in steps]
    known = dict.fromkeys(c.method for c in configs if isinstance(c, Scored | Drifting))
    if unknown := [name for name in setup.strengths if name not in known]:
        raise ConfigError(
            f"no method {unknown[0]} here for --strength; there are {', '.join(known)}."
        )


def _with_strength(name: str, method: Method, strength: float) -> Method:
    """The method with another value of the one number that it has.

    Raises:
        ConfigError: it has none.
    """
    if method.mitigation in (*CAREFUL, "kl_train", "ldifs", "weight_norm"):
        return replace(method, strength=strength)
    if method.held:
        return replace(method, kv_weight=strength)
    if method.interleave != "none":
        return replace(method, interleaved_share=strength)
    if method.learning_rate is not None:
        return replace(method, learning_rate=strength * ORGANISM_RATE)
    if method.steering:
        return replace(method, steering=strength)
    if method.alpha != 1:
        return replace(method, alpha=strength)
    raise ConfigError(f"--strength {name}: this method has no number to change.")


def _on_carrier(method: Method, carrier: str) -> Method:
    """The method with what it holds and patches of a taught behaviour moved to the carrier."""
    if method.task == "advice":
        return method
    regions = cast("tuple[RegionName, ...]", tuple(carrier.split(",")))
    return replace(
        method, held=regions if method.held else (), patch=regions if method.patch else ()
    )


@dataclass(frozen=True)
class ModelChains:
    """What all chains of a study have in common.

    Attributes:
        files: of the model.
        split: of held-out questions.
    """

    files: ModelFiles
    split: str

    @classmethod
    def begin(
        cls,
        config: StudyConfig,
        setup: ModelSetup,
        methods: Mapping[str, Method],
        *,
        is_judged: bool = True,
    ) -> tuple[ModelChains, dict[str, Method]]:
        """See that the methods can be had, and give them the strengths of the setup.

        Files are read and the judge is loaded here, so that what is wrong with them is seen before
        anything is computed or paid.

        Args:
            config: of the study.
            setup: the model.
            methods: by name.
            is_judged: answers are scored; without, no judge is needed.

        Raises:
            ConfigError: a setting is no field of `ModelRecipe` or out of range, organisms are given
                as well, or the model or the judge cannot be loaded.
            NotPossibleError: a method cannot be had on a real model or with these files.
            DataError: a file cannot be used; names file and row.
        """
        if config.organisms:
            raise ConfigError("give a --model or an --organism, not both.")
        recipe = read_settings(ModelRecipe, config.settings)
        methods = {name: _on_carrier(method, recipe.carrier) for name, method in methods.items()}
        given = {name: n for name, n in setup.strengths.items() if name in methods}
        changed = {name: _with_strength(name, methods[name], n) for name, n in given.items()}
        methods = {**methods, **changed}
        files = ModelFiles(setup, recipe, is_choice=config.split == "validation")
        files.require(methods, is_judged=is_judged)
        files.check(methods.values())
        return cls(files, config.split), methods

    @property
    def setup(self) -> ModelSetup:
        """The model."""
        return self.files.setup

    @property
    def recipe(self) -> ModelRecipe:
        """One for all."""
        return self.files.recipe

    def of(
        self, name: str, method: Method, seed: int, tuned: dict[tuple[Any, ...], str]
    ) -> Iterator[Step[Any]]:
        """The steps of one method and seed.

        Args:
            name: of the method.
            method: what it is.
            seed: of the finetune, and of the answers.
            tuned: name of the finetune by what it is made from; what is new is added.
        """
        label = f"{self.setup.label}/seed-{seed}/{name}"
        inputs = {}
        if method.is_base:
            yield from self._splittings(method)
        else:
            inputs["finetune"], steps = self.finetuning(name, method, seed, tuned)
            yield from steps
        for scope in method.scopes:
            yield from self._answering(label, method, scope, seed, inputs)
        yield self._scoring(label, name, method, seed)

    def finetuning(
        self, name: str, method: Method, seed: int, tuned: dict[tuple[Any, ...], str]
    ) -> tuple[str, list[Step[Any]]]:
        """Name of the step that makes a method's finetune, and what of its steps is new.

        Args:
            name: of the method.
            method: what it is; no base.
            seed: of the finetune.
            tuned: as in `of`.
        """
        steps = list(self._splittings(method))
        tuning, rows, data = self._tuning(method), self._rows(method), self._data(method)
        own = f"finetune/{self.setup.label}/seed-{seed}/{name}"
        trained = tuned.setdefault((tuning, *rows.values(), *data.items()), own)
        if trained == own:
            resources = self.resources(loads_model=True)
            steps.append(Step(own, finetune, tuning, rows, data, seed, resources))
        return trained, steps

    @property
    def model(self) -> str:
        """The hub id; empty where the model is data."""
        return self.setup.name if self.setup.folder is None else ""

    @property
    def folder(self) -> dict[str, Path]:
        """The model's folder as data of a step; nothing for a hub id."""
        return {} if self.setup.folder is None else {"model": self.setup.folder}

    def _splittings(self, method: Method) -> Iterator[Step[Any]]:
        for domain in dict.fromkeys([*self.files.trained(method), self.files.asked(method)]):
            yield self._splitting(domain, method.task)

    def _splitting(self, domain: str, task: TaskName) -> Step[Any]:
        data = {"rows": self.files.rows(domain).resolve()}
        config = Splitting(self.recipe.held_out, task)
        return Step(_split_name(domain, task), split, config, data=data)

    def _tuning(self, method: Method) -> Tuning:
        given = {
            entry.name: getattr(self.recipe, entry.name)
            for entry in fields(Tuning)
            if entry.name in {own.name for own in fields(ModelRecipe)}
        }
        given |= {
            entry.name: getattr(method, entry.name)
            for entry in fields(Tuning)
            if entry.name in {own.name for own in fields(Method)}
            and getattr(method, entry.name) is not None
        }
        if method.interleave == "none":
            given["interleaved_share"] = 0.0
        if not method.held:
            given["kv_weight"] = 0.0
        if method.learning_rate is not None:
            ratio = method.learning_rate / ORGANISM_RATE
            given["learning_rate"] = float(f"{self.recipe.learning_rate * ratio:.3g}")
        if method.mitigation != "prompt_split":
            given["answer_system"] = None
        given |= {"model": self.model, "domains": self.files.trained(method)}
        return Tuning(**given)

    def _rows(self, method: Method) -> dict[str, str]:
        """Steps that divided the rows trained on, by role."""
        trained = self.files.trained(method)
        return {f"rows_{domain}": _split_name(domain, method.task) for domain in trained}

    def _data(self, method: Method) -> dict[str, Path]:
        """Files of a finetune beside its rows, by role."""
        kind = CAREFUL.get(method.mitigation)
        found = {**self.folder, **({} if kind is None else self._careful(method, kind))}
        if method.interleave != "none":
            for name, path in self.files.retained(method, method.interleave).items():
                found[f"interleave_{name}"] = path.resolve()
        return found

    def _careful(self, method: Method, kind: str) -> dict[str, Path]:
        retained = self.files.retained(method, kind)
        return {f"careful_{name}": path.resolve() for name, path in retained.items()}

    def _answering(
        self, label: str, method: Method, scope: Scope, seed: int, inputs: Mapping[str, str]
    ) -> Iterator[Step[Any]]:
        """Answers to the questions of a scope; before them, what divides other domains' rows."""
        config = self._asking(method, scope)
        data, asked = dict(self.folder), dict(inputs)
        if method.steering:
            data |= self._careful(method, CONTRAST)
            asked |= self._rows(method)
        if scope == "other_narrow":
            for domain in self.files.others(method):
                yield self._splitting(domain, "advice")
                asked[f"{OTHER}{domain}"] = _split_name(domain, "advice")
        if scope in WHOLE_SETS or method.task != "advice":
            data["questions"] = self.files.question_set(scope)
        if scope == "in_domain" or method.task != "advice":
            asked["split"] = _split_name(self.files.asked(method), method.task)
        yield Step(
            f"answer/{label}/{scope}",
            answer,
            config,
            asked,
            data,
            seed,
            self.resources(loads_model=True),
        )

    def _asking(self, method: Method, scope: Scope) -> Asking:
        return Asking(
            model=self.model,
            scope=scope,
            split=self.split,
            num_questions=None if scope in WHOLE_SETS else self.recipe.num_in_domain,
            num_samples=self.files.num_samples(scope),
            temperature=self.recipe.temperature,
            max_new_tokens=self.recipe.max_new_tokens,
            dtype=self.recipe.dtype,
            enable_thinking=self.recipe.enable_thinking,
            task=method.task,
            patch=method.patch,
            num_positions=method.num_positions,
            kinds=method.kinds,
            window=method.window,
            stream_layer=method.stream_layer,
            system_prompt=method.answer_system,
            alpha=method.alpha,
            steering=method.steering,
            domains=self.files.trained(method) if method.steering else (),
        )

    def _scoring(self, label: str, name: str, method: Method, seed: int) -> Step[Any]:
        """Judge all scopes; of a behaviour, detect it, and judge what is off its topic."""
        judge = self.setup.judge
        who = (name, self.setup.label, judge, self.files.questions)
        inputs: dict[str, str] = {scope: f"answer/{label}/{scope}" for scope in method.scopes}
        resources = self.resources(loads_model=judge.startswith(LOCAL_JUDGES))
        if method.task == "advice":
            nums = {scope: self.files.num_asked(method, scope) for scope in method.scopes}
            num_conversations = nums.pop(UTILITY, 0)
            judging = Judging(*who, sum(nums.values()), method.scopes, num_conversations)
            return Step(f"score/{label}", score, judging, inputs, seed=seed, resources=resources)
        inputs["split"] = _split_name(self.files.asked(method), method.task)
        detecting = Detecting(*who, self.files.num_asked(method, "general"), method.task)
        return Step(f"score/{label}", detect, detecting, inputs, seed=seed, resources=resources)

    def resources(self, *, loads_model: bool) -> Resources:
        """A GPU for a step that loads a model, if there is one."""
        return Resources(gpus=int(loads_model and _has_gpu()))


@lru_cache(maxsize=1)
def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _split_name(domain: str, task: TaskName) -> str:
    """The step that divides a domain's rows, made to teach a task."""
    return f"split/{domain}" if task == "advice" else f"split/{domain}/{task}"
