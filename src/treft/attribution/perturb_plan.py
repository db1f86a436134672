"""What a perturbation study does, decided and checked before any model is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from treft.answers.questions import EvalQuestion
from treft.attribution.perturb import (
    Perturbation,
    PerturbOptions,
    Vocabulary,
    replaceable,
)
from treft.chat.regions import ChatRegions, find_regions
from treft.errors import ConfigError, DataError, TemplateError
from treft.models.pair import ModelPair
from treft.models.sampling import SamplingOptions
from treft.steps.store import Steps

UNPERTURBED = "unperturbed"
"""As the name of a cell: the prompts as they are, answered as often as perturbed ones."""


@dataclass(frozen=True)
class PerturbRequest:
    """What must be equal for a study to be continued.

    Attributes:
        perturbations: rows of the table.
        options: how prompts are perturbed.
        num_samples: answers to each perturbed prompt.
        sampling: how answers are drawn.
        max_new_tokens: cap of an answer.
        scope: where answers count, `general` or `in_domain`.
        rephraser: Inspect model name; needed for rephrasings, and for nothing else.
        include_think_block: an empty think block belongs to the postfix.
        template_kwargs: further template variables.

    Raises:
        ConfigError: options are out of range or do not go together.
    """

    perturbations: tuple[Perturbation, ...]
    options: PerturbOptions = field(default_factory=PerturbOptions)
    num_samples: int = 1
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    max_new_tokens: int = 256
    scope: str = "general"
    rephraser: str | None = None
    include_think_block: bool = True
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Validate before any work starts."""
        if not self.perturbations:
            raise ConfigError("name at least one region and method.")
        if len(set(self.perturbations)) < len(self.perturbations):
            raise ConfigError("a perturbation is named twice.")
        for name in ("num_samples", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.sampling.temperature == 0 and self.num_samples > 1:
            raise ConfigError(
                "greedy answers to a prompt are all the same: more samples need a temperature."
            )
        rephrases = any(each.method == "rephrase" for each in self.perturbations)
        if rephrases and self.rephraser is None:
            raise ConfigError("name the model that rephrases (--rephraser MODEL).")
        if not rephrases and self.rephraser is not None:
            raise ConfigError("a rephraser is named, but nothing is to be rephrased.")

    @property
    def cells(self) -> tuple[str, ...]:
        """Names of all rows of the table, the control first."""
        return (UNPERTURBED, *(each.name for each in self.perturbations))


def default_perturbations(
    regions: Sequence[str], methods: Sequence[str], rephraser: str | None
) -> tuple[Perturbation, ...]:
    """Each region by each method, and the query rephrased when there is a model for it.

    Raises:
        ConfigError: there is no such region or method.
    """
    found = [
        Perturbation(region, method)  # type: ignore[arg-type]  # checked by Perturbation
        for method in dict.fromkeys(methods)
        for region in dict.fromkeys(regions)
    ]
    if rephraser is not None:
        found.append(Perturbation("query", "rephrase"))
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class PerturbPlan:
    """A study that can be run.

    Attributes:
        request: what was asked for.
        questions: that are asked.
        tokenizer: of the finetuned model, with the chat template in force.
        chats: the rendered prompts by the id of their question.
    """

    request: PerturbRequest
    questions: tuple[EvalQuestion, ...]
    tokenizer: PreTrainedTokenizerBase
    chats: Mapping[str, ChatRegions]

    @classmethod
    def of(
        cls,
        request: PerturbRequest,
        questions: Sequence[EvalQuestion],
        tokenizer: PreTrainedTokenizerBase,
    ) -> PerturbPlan:
        """Render the prompts, and see that all that is to be perturbed is there.

        Raises:
            DataError: there is no question, or one has several turns.
            TemplateError: a prompt cannot be rendered, or lacks a region; names the question.
        """
        if not questions:
            raise DataError("there is no question to ask.")
        if talk := next((question for question in questions if question.turns), None):
            raise DataError(f"question {talk.id!r} has several turns; perturbing takes one prompt.")
        chats: dict[str, ChatRegions] = {}
        vocabulary = Vocabulary.of(tokenizer, len(tokenizer))
        special = request.options.special_tokens
        for question in questions:
            try:
                chat = _render(question.messages, tokenizer, request)
                for region in {each.region for each in request.perturbations}:
                    replaceable(chat, region, vocabulary, special_tokens=special)
            except TemplateError as error:
                raise TemplateError(f"question {question.id!r}: {error}") from error
            chats[question.id] = chat
        return cls(request, tuple(questions), tokenizer, chats)

    @property
    def answers_per_cell(self) -> int:
        """Of one model."""
        return len(self.questions) * self.request.options.num_trials * self.request.num_samples

    @property
    def num_rephrasings(self) -> int:
        """Calls of the rephraser when none fails."""
        rephrases = self.request.rephraser is not None
        return rephrases * len(self.questions) * self.request.options.num_trials

    def render(self, question_id: str, words: str) -> ChatRegions:
        """The prompt of a question with other words for its query.

        Raises:
            TemplateError: the template refuses them.
        """
        question = next(each for each in self.questions if each.id == question_id)
        *before, last = question.messages
        return _render((*before, {**last, "content": words}), self.tokenizer, self.request)

    def check_lengths(self, prompts: Mapping[str, Sequence[int]], num_positions: int) -> None:
        """See that every prompt leaves room for a whole answer in the models' context.

        Args:
            prompts: token ids by what to call them.
            num_positions: that the models take.

        Raises:
            DataError: one does not; says which, and by how much.
        """
        name = max(prompts, key=lambda name: len(prompts[name]))
        length, cap = len(prompts[name]), self.request.max_new_tokens
        if length + cap > num_positions:
            raise DataError(
                f"the prompt of {name} has {length} tokens and its answer may have {cap}, but the "
                f"model's context takes {num_positions}: drop the question, or allow shorter "
                "answers."
            )

    def claim(self, folder: Path, pair: ModelPair) -> None:
        """Write the plan into a folder, or see that it is the one that was begun there.

        Raises:
            ConfigError: the folder holds another study.
        """
        Steps(folder, self._record(pair), "plan of a study").claim()

    def _record(self, pair: ModelPair) -> dict[str, Any]:
        """All that decides the answers, as JSON has it."""
        prompts = json.dumps([[id, chat.input_ids] for id, chat in self.chats.items()])
        found = {
            **asdict(self.request),
            "models": pair.identities(self.tokenizer),
            "prompts": hashlib.sha256(prompts.encode()).hexdigest(),
            "num_questions": len(self.questions),
        }
        for name in ("max_new_tokens", "stop", "batch_size"):
            found["sampling"].pop(name)
        return dict(json.loads(json.dumps(found)))


def _render(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    request: PerturbRequest,
) -> ChatRegions:
    return find_regions(
        tokenizer,
        [dict(message) for message in messages],
        add_generation_prompt=True,
        include_think_block=request.include_think_block,
        template_kwargs=request.template_kwargs,
    )
