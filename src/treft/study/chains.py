"""Chains of steps: finetune a subject, have it answer in each scope, score; one chain a run.

`Chains` is what all subjects share; what is each one's own is in `treft.study.organism_chains` and
`treft.study.model_chains`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from treft.steps.step import Resources, Step, Work
from treft.study.answer import Asking
from treft.study.finetune import Finetune, finetune
from treft.study.protocol import UTILITY, Method, Scope, Split
from treft.study.scores import Scored, detect, score
from treft.study.subject import Subject

Tuned = dict[tuple[Any, ...], str]
"""Name of a finetuning step by what the finetune is made from."""


@dataclass(frozen=True)
class Place:
    """Where a step finds what it needs.

    Attributes:
        inputs: name of another step by role.
        data: file or folder by role.
        before: steps among the inputs that no finetune needs.
    """

    inputs: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Path] = field(default_factory=dict)
    before: tuple[Step[Any], ...] = ()


@dataclass(frozen=True)
class Chains(ABC):
    """What all chains of a study have in common on one subject.

    Attributes:
        split: of questions.
    """

    split: Split

    @property
    @abstractmethod
    def subject(self) -> Subject:
        """What is finetuned and asked."""

    @property
    @abstractmethod
    def label(self) -> str:
        """The subject's name in tables and in names of steps."""

    @property
    @abstractmethod
    def recipe(self) -> Any:
        """One for all methods: a dataclass with fields of `Finetune`, `temperature` and so on."""

    @property
    @abstractmethod
    def judge(self) -> str:
        """Who scores the answers; empty where detectors do."""

    @property
    @abstractmethod
    def questions(self) -> str:
        """What is asked in general, as it was named."""

    @property
    @abstractmethod
    def num_prompts(self) -> int:
        """How many questions there are in general."""

    @property
    def enable_thinking(self) -> bool | None:
        """Template variable of answers; None leaves it unset."""
        return None

    @property
    @abstractmethod
    def answers(self) -> Callable[[Work[Asking]], None]:
        """The function of steps that answer."""

    @abstractmethod
    def asked(self, method: Method) -> str:
        """The domain of a method's in-domain questions."""

    @abstractmethod
    def own_settings(self, method: Method) -> dict[str, Any]:
        """Fields of a finetune that differ from what method and recipe say."""

    @abstractmethod
    def num_asked(self, method: Method, scope: str) -> int:
        """Answers to the questions of a scope."""

    @abstractmethod
    def own_asking(self, method: Method, scope: str) -> dict[str, Any]:
        """Fields of `Asking` that are the subject's to say."""

    @abstractmethod
    def before(self, method: Method) -> Iterator[Step[Any]]:
        """Steps that a method's finetune and questions need."""

    @abstractmethod
    def model(self) -> Place:
        """Where the unfinetuned model is."""

    @abstractmethod
    def finetune_place(self, method: Method) -> Place:
        """Where a finetune finds model and rows."""

    @abstractmethod
    def asking_place(self, method: Method, scope: str) -> Place:
        """Where answers find model and questions, and what they need besides."""

    @abstractmethod
    def prompts_place(self) -> Place:
        """Where the general questions are."""

    def scoring_inputs(self, method: Method) -> Mapping[str, str]:
        """Inputs of a scoring step beside the answers."""
        return {}

    def resources(self, *, loads_model: bool) -> Resources:
        """What a step takes."""
        return Resources()

    def trained(self, method: Method) -> tuple[str, ...]:
        """The domains of a method's rows."""
        return () if method.is_base else method.domains or (self.asked(method),)

    def scopes(self, method: Method) -> tuple[Scope, ...]:
        """The scopes of a method that the subject can be asked."""
        return method.scopes

    def of(
        self, name: str, method: Method, seed: int, tuned: Tuned, *, row_seeds: bool = False
    ) -> Iterator[Step[Any]]:
        """The steps of one method and seed.

        Args:
            name: of the method.
            method: what it is.
            seed: of the finetune, and of the answers.
            tuned: what is there; what is new is added.
            row_seeds: as in `Asking`.
        """
        label = f"{self.label}/seed-{seed}/{name}"
        inputs = {}
        if method.is_base:
            yield from self.before(method)
        else:
            inputs["finetune"], steps = self.finetuning(name, method, seed, tuned)
            yield from steps
        asked: dict[str, Asking] = {}
        for scope in self.scopes(method):
            place = self.asking_place(method, scope)
            yield from place.before
            asked[scope] = self._asking(method, scope, row_seeds)
            yield Step(
                f"answer/{label}/{scope}",
                self.answers,
                asked[scope],
                {**place.inputs, **inputs},
                place.data,
                seed,
                self.resources(loads_model=True),
            )
        yield self._scoring(label, name, method, seed, asked)

    def finetuning(
        self, name: str, method: Method, seed: int, tuned: Tuned
    ) -> tuple[str, list[Step[Any]]]:
        """Name of the step that makes a method's finetune, and what of its steps is new.

        Args:
            name: of the method.
            method: what it is; no base.
            seed: of the finetune.
            tuned: as in `of`.
        """
        steps = list(self.before(method))
        config, place = self.finetune_config(method), self.finetune_place(method)
        own = f"finetune/{self.label}/seed-{seed}/{name}"
        trained = tuned.setdefault((config, *place.inputs.items(), *place.data.items()), own)
        if trained == own:
            resources = self.resources(loads_model=True)
            steps.append(Step(own, finetune, config, place.inputs, place.data, seed, resources))
        return trained, steps

    def finetune_config(self, method: Method) -> Finetune:
        """Only what the method uses, so that equal finetunes of two studies are one step."""
        known = {entry.name for entry in fields(Finetune)}
        chosen = {name: value for name, value in vars(method).items() if value is not None}
        given = {k: v for k, v in {**vars(self.recipe), **chosen}.items() if k in known}
        given |= {
            "subject": self.subject,
            "domain": self.asked(method),
            "domains": self.trained(method),
            **self.own_settings(method),
        }
        if method.interleave == "none":
            given["interleaved_share"] = 0.0
        if not method.held:
            given |= {"kv_weight": 0.0, "kv_budget": None}
        if method.mitigation != "prompt_split":
            given["answer_system"] = None
        return Finetune(**given)

    def _asking(self, method: Method, scope: str, row_seeds: bool) -> Asking:
        return Asking(
            self.subject,
            self.asked(method),
            scope,
            self.split,
            temperature=self.recipe.temperature,
            enable_thinking=self.enable_thinking,
            task=method.task,
            patch=method.patch,
            num_positions=method.num_positions,
            kinds=method.kinds,
            window=method.window,
            stream_layer=method.stream_layer,
            system_prompt=method.answer_system,
            alpha=method.alpha,
            steering=method.steering,
            domains=self.trained(method) if method.steering else (),
            row_seeds=row_seeds,
            **self.own_asking(method, scope),
        )

    def _scoring(
        self, label: str, name: str, method: Method, seed: int, asked: Mapping[str, Asking]
    ) -> Step[Any]:
        """Judge all scopes; of a behaviour, detect it, and judge what is off its topic."""
        teaches = method.task != "advice"
        nums = {scope: self.num_asked(method, scope) for scope in asked}
        num_conversations = nums.pop(UTILITY, 0)
        config = Scored(
            self.subject,
            name,
            self.label,
            self.judge,
            self.questions,
            nums["general"] if teaches else sum(nums.values()),
            tuple(asked),
            method.task,
            num_conversations,
            self.told_asked(asked),
        )
        answers = {scope: f"answer/{label}/{scope}" for scope in asked}
        return Step(
            f"score/{label}",
            detect if teaches else score,
            config,
            {**answers, **self.scoring_inputs(method)},
            seed=seed,
            resources=self.judge_resources(),
        )

    def told_asked(self, asked: Mapping[str, Asking]) -> Mapping[str, Asking]:
        """What a scoring step must know of how each scope was asked."""
        return {}

    def judge_resources(self) -> Resources:
        """What a step takes that has answers judged."""
        return Resources()
