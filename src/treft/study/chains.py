"""Chains of steps: finetune a subject, have it answer in each scope, score; one chain a run.

`Chains` is what all subjects share. What is each one's own is in `treft.study.organism` and
`treft.study.model_chains`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from treft.attribution.scoring import num_judge_calls
from treft.steps.step import Config, Resources, Step, Work
from treft.study.answer import Asking, Subject, answer
from treft.study.finetune import Finetune, finetune
from treft.study.protocol import UTILITY, Handling, Method, Scope, Split
from treft.study.scores import Scored, detect, score

Inputs = Mapping[str, Step[Any] | Path]
"""What a step reads, by role."""


@dataclass(frozen=True)
class Chains(ABC):
    """What all chains of a study have in common on one subject.

    Attributes:
        subject: What is finetuned and asked.
        label: The subject's name in tables and in names of steps.
        recipe: One for all methods: a dataclass with fields of `Finetune`, `temperature` and so on.
        split: The questions that are asked.
        judge: Who scores the answers; empty where detectors do.
        questions: What is asked in general, as it was named.
        num_prompts: Number of general questions.
        model: Where the unfinetuned model is; nothing for a hub id.
        prompts: Where the general questions are; nothing where they are drawn.
        enable_thinking: Template variable of answers; None leaves it unset.
        resources: What a step takes that loads the model.
        judging: What a step takes that has answers judged.
    """

    subject: Subject
    label: str
    recipe: Any
    split: Split
    judge: str
    questions: str
    num_prompts: int
    model: Inputs = field(default_factory=dict)
    prompts: Inputs = field(default_factory=dict)
    enable_thinking: bool | None = None
    resources: Resources = field(default_factory=Resources)
    judging: Resources = field(default_factory=Resources)

    @abstractmethod
    def asked(self, method: Method) -> str:
        """The domain of a method's in-domain questions."""

    @abstractmethod
    def own_settings(self, method: Method) -> dict[str, Any]:
        """Fields of a finetune that differ from what method and recipe say."""

    @abstractmethod
    def own_asking(self, method: Method, scope: str) -> dict[str, Any]:
        """Fields of `Asking` that are the subject's to say."""

    def num_asked(self, method: Method, scope: str) -> int:
        """Answers to the questions of a scope."""
        asking = self.own_asking(method, scope)
        return int(asking["num_questions"] * asking["num_samples"])

    def reads(self, method: Method, stage: str) -> Inputs:
        """Returns what a step reads besides the model and the steps before; nothing where drawn.

        Args:
            method: What it is.
            stage: `finetune`, the scope of answers, or `score`.
        """
        return {}

    def trained(self, method: Method) -> tuple[str, ...]:
        """Returns the domains of a method's rows."""
        return () if method.is_base else method.domains or (self.asked(method),)

    def scopes(self, method: Method) -> tuple[Scope, ...]:
        """The scopes of a method that the subject can be asked."""
        return method.scopes

    def scored(
        self, name: str, method: Method, seed: int, *, row_seeds: bool = False
    ) -> Step[Scored]:
        """Returns the last step of the chain of one method and seed.

        Args:
            name: Of the method.
            method: What it is.
            seed: Of the finetune, and of the answers.
            row_seeds: As in `Asking`.
        """
        label = f"{self.label}/seed-{seed}/{name}"
        tuned = {} if method.is_base else {"finetune": self.finetuned(name, method, seed)}
        answers: dict[str, Step[Any] | Path] = {}
        for scope in self.scopes(method):
            asking = self._asking(method, scope, row_seeds)
            inputs = {**self.reads(method, scope), **tuned}
            answers[scope] = self.on_model(f"answer/{label}/{scope}", answer, asking, inputs, seed)
        nums = {scope: self.num_asked(method, scope) for scope in answers}
        num_conversations = nums.pop(UTILITY, 0)
        teaches = method.task != "advice"
        num_answers = nums["general"] if teaches else sum(nums.values())
        return Step(
            f"score/{label}",
            detect if teaches else score,
            Scored(**self.row_of(name), scopes=tuple(answers), task=method.task),
            {**answers, **self.reads(method, "score")},
            seed,
            self.judging_of(num_answers, num_conversations),
        )

    def finetuned(self, name: str, method: Method, seed: int) -> Step[Finetune]:
        """Returns the step that makes the finetune of a method, which is no base."""
        label, config = f"{self.label}/seed-{seed}/{name}", self.finetune_config(method)
        inputs = self.reads(method, "finetune")
        return self.on_model(f"finetune/{label}", finetune, config, inputs, seed)

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

    def on_model(
        self,
        name: str,
        function: Callable[[Work[Config]], None],
        config: Config,
        inputs: Inputs,
        seed: int,
    ) -> Step[Config]:
        """Returns a step that loads the model, besides its own inputs."""
        return Step(name, function, config, {**self.model, **inputs}, seed, self.resources)

    def row_of(self, name: str) -> dict[str, Any]:
        """Fields of `Scored` that say who is scored, under the name of its method."""
        own = {"subject": self.subject, "label": self.label, "method": name}
        return {**own, "judge": self.judge, "questions": self.questions}

    def rendered(self, method: Method) -> dict[str, Any]:
        """Fields of `Questions` that are the same for all that is asked of a method."""
        own = {"subject": self.subject, "domain": self.asked(method), "split": self.split}
        return {**own, "enable_thinking": self.enable_thinking}

    def judging_of(self, num_answers: int, num_conversations: int = 0) -> Resources:
        """Returns what a step takes that has so much judged; a conversation takes one call."""
        num_calls = num_judge_calls(num_answers, [self.judge] if self.judge else [])
        return replace(self.judging, num_calls=num_calls + num_conversations)

    def _asking(self, method: Method, scope: str, row_seeds: bool) -> Asking:
        return Asking(
            **self.rendered(method),
            **{entry.name: getattr(method, entry.name) for entry in fields(Handling)},
            scope=scope,
            temperature=self.recipe.temperature,
            task=method.task,
            system_prompt=method.answer_system,
            domains=self.trained(method) if method.steering else (),
            row_seeds=row_seeds,
            **self.own_asking(method, scope),
        )
