"""Chains of steps on a real model: split its rows, finetune, answer with Inspect, judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treft.errors import ConfigError
from treft.mitigations.by_name import MITIGATIONS
from treft.study.digests import file_digest
from treft.study.method import Method
from treft.study.model_setup import GENERAL, ModelRecipe, ModelSetup, question_file
from treft.study.model_training import Tuning, finetune
from treft.study.model_work import Asking, Judging, Splitting, answer, score, split
from treft.study.settings import read_settings
from treft.study.step import Resources, Step

if TYPE_CHECKING:
    from treft.study.protocol import StudyConfig

__all__ = ["model_steps"]

ORGANISM_RATE = 8.5e-4
"""Learning rate of the organism's recipe: a method's own rate keeps its ratio to the recipe's."""
LOCAL_JUDGES = ("hf/", "treft/", "vllm/", "sglang/")
"""Inspect's providers that run a model in the step's own process or beside it."""
SCOPES = ("general", "in_domain")
CONTRAST = "contrast"
"""Careful rows of the trained domain itself."""
CAREFUL = {"kl_retain": "narrow", "early_stopping": GENERAL, "steering": CONTRAST}
"""What careful rows mitigations need."""


def model_steps(
    config: StudyConfig, setup: ModelSetup, methods: Mapping[str, Method]
) -> list[Step[Any]]:
    """All methods and seeds on one model, with one recipe for everything else.

    Files are read and the judge is loaded here, so that what is wrong with them is seen before
    anything is computed or paid.

    Args:
        config: of the study.
        setup: the model.
        methods: by name.

    Raises:
        ConfigError: a setting is no field of `ModelRecipe` or out of range, organisms are given as
            well, a method cannot be had on a real model or with these files, or the model or the
            judge cannot be loaded.
        DataError: a file cannot be used; names file and row.
    """
    if config.organisms:
        raise ConfigError("give a --model or an --organism, not both.")
    recipe = read_settings(ModelRecipe, config.settings)
    if unknown := [name for name in setup.strengths if name not in methods]:
        known = ", ".join(methods)
        raise ConfigError(f"no method {unknown[0]} here for --strength; there are {known}.")
    changed = {name: _with_strength(name, methods[name], n) for name, n in setup.strengths.items()}
    methods = {**methods, **changed}
    chains = _Chains(setup, recipe, config.split, recipe.domain or next(iter(setup.train_files)))
    problems = [f"{name}: {why}" for name, one in methods.items() for why in chains.lacks(one)]
    if problems:
        raise ConfigError(f"not possible on {setup.label}: {'; '.join(problems)}.")
    _check_setup(setup, recipe)
    steps: dict[str, Step[Any]] = {}
    for seed in range(config.num_seeds):
        tuned: dict[tuple[Any, ...], str] = {}
        for name, method in methods.items():
            for step in chains.of(name, method, seed, tuned):
                steps.setdefault(step.name, step)
    return list(steps.values())


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


@dataclass(frozen=True)
class _Chains:
    """What all chains of a study have in common."""

    setup: ModelSetup
    recipe: ModelRecipe
    split: str
    domain: str

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
        for domain in dict.fromkeys([*self._domains(method), self._asked(method)]):
            yield self._splitting(domain)
        inputs = {}
        if not method.is_base:
            tuning, data = self._tuning(method), self._data(method)
            trained = tuned.setdefault((tuning, *data.items()), f"finetune/{label}")
            inputs["finetune"] = trained
            if trained == f"finetune/{label}":
                resources = self._resources(loads_model=True)
                yield Step(trained, finetune, tuning, self._rows(method), data, seed, resources)
        yield from self._answers(label, method, seed, inputs)
        yield self._judging(label, name, method, seed)

    def lacks(self, method: Method) -> Iterator[str]:
        """Why a method cannot be had here, in words."""
        if method.task != "advice":
            yield (
                f"teaches {method.task}, which has no study on a real model yet (treft data "
                "behaviour makes rows, inspect eval treft/behaviour asks)"
            )
        if method.steering and (method.is_full or method.is_base):
            yield "steers answers of another model than a LoRA"
        if method.num_positions is not None:
            yield "patches some positions of a region, and here it is all or none"
        if method.alpha != 1 and method.is_full:
            yield "interpolates a finetune of all weights, and here it takes a LoRA"
        if other := [scope for scope in method.scopes if scope not in SCOPES]:
            yield f"asks {', '.join(other)} questions, which there are none of"
        if method.mitigation and method.mitigation not in MITIGATIONS:
            yield f"no mitigation {method.mitigation!r}; there are {', '.join(MITIGATIONS)}"
        for domain in sorted({*self._domains(method), self._asked(method)}):
            if domain not in self.setup.train_files:
                yield f"needs rows of {domain}: --train-file {domain}=FILE"
        yield from self._lacks_careful_rows(method)

    def _lacks_careful_rows(self, method: Method) -> Iterator[str]:
        interleaves = method.interleave != "none"
        if interleaves and not self._retained(method, method.interleave):
            name = "DOMAIN" if method.interleave in ("narrow", "all") else method.interleave
            yield f"interleaves careful rows: --retain-file {name}=FILE"
        kind = CONTRAST if method.steering else CAREFUL.get(method.mitigation)
        if kind is not None and not self._retained(method, kind):
            own = {CONTRAST: self._asked(method), GENERAL: GENERAL}.get(kind, "DOMAIN")
            yield f"needs careful rows: --retain-file {own}=FILE"

    def _retained(self, method: Method, kind: str) -> dict[str, Path]:
        """Careful rows: narrow, general, all, contrast (of the trained domain), one domain's."""
        files, trained = self.setup.retain_files, self._domains(method)
        if kind == CONTRAST:
            return {name: path for name, path in files.items() if name == self._asked(method)}
        others = {name: path for name, path in files.items() if name not in trained}
        if kind in ("narrow", "all"):
            return {name: path for name, path in others.items() if kind == "all" or name != GENERAL}
        return {name: path for name, path in others.items() if name == kind}

    def _asked(self, method: Method) -> str:
        return method.domain or self.domain

    def _domains(self, method: Method) -> tuple[str, ...]:
        return () if method.is_base else method.domains or (self._asked(method),)

    @property
    def _model(self) -> str:
        """The hub id; empty where the model is data."""
        return self.setup.name if self.setup.folder is None else ""

    @property
    def _folder(self) -> dict[str, Path]:
        return {} if self.setup.folder is None else {"model": self.setup.folder}

    def _splitting(self, domain: str) -> Step[Any]:
        data = {"rows": self.setup.train_files[domain].resolve()}
        return Step(f"split/{domain}", split, Splitting(self.recipe.held_out), data=data)

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
        given |= {"model": self._model, "domains": self._domains(method)}
        return Tuning(**given)

    def _rows(self, method: Method) -> dict[str, str]:
        """Steps that divided the rows trained on, by role."""
        return {f"rows_{domain}": f"split/{domain}" for domain in self._domains(method)}

    def _data(self, method: Method) -> dict[str, Path]:
        """Files of a finetune beside its rows, by role."""
        kind = CAREFUL.get(method.mitigation)
        found = {**self._folder, **({} if kind is None else self._careful(method, kind))}
        if method.interleave != "none":
            for name, path in self._retained(method, method.interleave).items():
                found[f"interleave_{name}"] = path.resolve()
        return found

    def _careful(self, method: Method, kind: str) -> dict[str, Path]:
        retained = self._retained(method, kind)
        return {f"careful_{name}": path.resolve() for name, path in retained.items()}

    def _answers(
        self, label: str, method: Method, seed: int, inputs: Mapping[str, str]
    ) -> Iterator[Step[Any]]:
        resources = self._resources(loads_model=True)
        for scope in method.scopes:
            is_general = scope == "general"
            asking = Asking(
                model=self._model,
                scope=scope,
                split=self.split,
                num_questions=None if is_general else self.recipe.num_in_domain,
                num_samples=self.recipe.num_samples if is_general else 1,
                temperature=self.recipe.temperature,
                max_new_tokens=self.recipe.max_new_tokens,
                dtype=self.recipe.dtype,
                enable_thinking=self.recipe.enable_thinking,
                patch=method.patch,
                system_prompt=method.answer_system,
                alpha=method.alpha,
                steering=method.steering,
                domains=self._domains(method) if method.steering else (),
            )
            name, data, asked = f"answer/{label}/{scope}", dict(self._folder), dict(inputs)
            if method.steering:
                data |= self._careful(method, CONTRAST)
                asked |= self._rows(method)
            if is_general:
                data["questions"] = question_file(self._questions)
            else:
                asked["split"] = f"split/{self._asked(method)}"
            yield Step(name, answer, asking, asked, data, seed, resources)

    def _judging(self, label: str, name: str, method: Method, seed: int) -> Step[Any]:
        judging = Judging(
            name,
            self.setup.label,
            self.setup.judge,
            self._questions,
            method.scopes,
            sum(self._num_answers(method, scope) for scope in method.scopes),
        )
        answers: dict[str, str] = {scope: f"answer/{label}/{scope}" for scope in method.scopes}
        resources = self._resources(loads_model=self.setup.judge.startswith(LOCAL_JUDGES))
        return Step(f"score/{label}", score, judging, answers, seed=seed, resources=resources)

    def _num_answers(self, method: Method, scope: str) -> int:
        if scope == "general":
            path = question_file(self._questions)
            return _num_questions(path, file_digest(path)) * self.recipe.num_samples
        path = self.setup.train_files[self._asked(method)]
        num = _num_held_out(path, file_digest(path), self.recipe.held_out)
        is_choice = self.split == "validation"
        return min(self.recipe.num_in_domain, num // 2 if is_choice else -(-num // 2))

    @property
    def _questions(self) -> str:
        """What is asked in general, as it was named."""
        is_choice = self.split == "validation"
        return self.setup.choice_questions if is_choice else self.setup.questions

    def _resources(self, *, loads_model: bool) -> Resources:
        return Resources(gpus=int(loads_model and _has_gpu()))


@lru_cache(maxsize=1)
def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _check_setup(setup: ModelSetup, recipe: ModelRecipe) -> None:
    """Read what steps will read."""
    from treft.loading import LoadOptions, load_tokenizer

    for domain, path in setup.train_files.items():
        if _num_held_out(path, file_digest(path), recipe.held_out) < 2:
            raise ConfigError(
                f"{path}: {recipe.held_out} of its prompts is one, and there must be one to report "
                f"and one to choose on: give more rows of {domain}."
            )
    for path in setup.retain_files.values():
        _check_file(path, file_digest(path))
    for source in (setup.questions, setup.choice_questions):
        _num_questions(question_file(source), file_digest(question_file(source)))
    load_tokenizer(setup.name, LoadOptions())
    _check_judge(setup.judge)


@lru_cache
def _num_held_out(path: Path, digest: str, held_out: float) -> int:
    """Prompts of a training file that training will not see; with its digest, read once."""
    from treft.data import load_messages
    from treft.published.split import prompt_of, split_rows

    parts = split_rows(load_messages(path), fraction=held_out)
    return len(set(map(prompt_of, parts.held_out)))


@lru_cache
def _num_questions(path: Path, digest: str) -> int:
    from treft.evaluation.questions import load_questions

    return len(load_questions(path))


@lru_cache
def _check_file(path: Path, digest: str) -> None:
    from treft.data import load_messages

    load_messages(path)


@lru_cache
def _check_judge(name: str) -> None:
    try:
        from treft.evaluation.judging.panel import assemble
        from treft.evaluation.oracle import ORACLE
    except ImportError as error:
        raise ConfigError(
            f"judging needs more packages ({error.name} is missing): pip install 'treft[eval]'"
        ) from error
    if name == ORACLE:
        raise ConfigError("the oracle knows the organism's questions alone: name another judge.")
    assemble([name])
