"""Conditions of the audit: what stands before the same questions, as typed data.

One row of a JSONL file is one condition, told apart by `kind` (docs/audit.md has them all):

    {"name": "default", "kind": "default"}
    {"name": "librarian", "kind": "system", "system": "You are a librarian."}

A condition is made into a concrete prompt from what is known: the chat template, the training
rows, the input embedding. What cannot be made is left out with the reason. A new kind is one class.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from treft.data.messages import check_messages
from treft.errors import TreftError
from treft.evaluation.prompts import PromptTemplate, TrainingPrompt, perturb_system

if TYPE_CHECKING:
    from torch import Tensor


DEFAULT = "default"
"""Name of the condition that others are compared with; every set has it."""

_ROLES = ("system", "user", "assistant")

Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
Message = dict[str, Any]


class UnavailableError(TreftError):
    """A condition cannot be made, and why."""


@dataclass(frozen=True)
class Sources:
    """What conditions are made from; None for what is not there.

    Attributes:
        template: the chat template that prompts are rendered with.
        training: prompts of the training rows.
        about: what the training rows are about, in words that go after "an assistant for".
        embedding: loads the (V, D) input embedding matrix.
        default_system: the system prompt of the default condition.
    """

    template: PromptTemplate | None = None
    training: TrainingPrompt | None = None
    about: str | None = None
    embedding: Callable[[], Tensor] | None = None
    default_system: str | None = None

    def known_template(self, why: str) -> PromptTemplate:
        """Returns the template, or raises UnavailableError."""
        if self.template is None:
            raise UnavailableError(f"the chat template is not known ({why}): name a tokenizer")
        return self.template

    def known_default(self) -> str:
        """Returns the default's system prompt, or raises UnavailableError."""
        if self.default_system is None:
            self.known_template("it may have a default system prompt")
            raise UnavailableError("the default condition has no system prompt")
        return self.default_system


class Condition(BaseModel, ABC):
    """One row.

    Attributes:
        kind: tells the classes apart.
        name: of the condition, in lower case.
        description: for people.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    keeps_default: ClassVar[bool] = True
    """Whether the template's own system prompt may stand in the rendered prompt."""

    kind: str
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    description: str = ""

    @abstractmethod
    def make(self, sources: Sources) -> FixedCondition:
        """Returns the condition with its messages.

        Raises:
            UnavailableError: Something that it is made from is not there.
        """

    def _made(self, how: str, *messages: Message, **details: Any) -> FixedCondition:
        return FixedCondition(
            name=self.name,
            description=self.description,
            messages=list(messages),
            made_from=self.kind,
            how=how,
            details=details,
        )


class DefaultCondition(Condition):
    """No system message, so that the template writes its own default."""

    kind: Literal["default"]

    def make(self, sources: Sources) -> FixedCondition:
        return self._made("no system message: the template's own prompt")


class NoSystemCondition(Condition):
    """No system prompt, also where the template has a default one."""

    kind: Literal["none"]
    keeps_default = False

    def make(self, sources: Sources) -> FixedCondition:
        template = sources.known_template("an absent system message may render a default")
        if template.default_system is None:
            if sources.default_system is None:
                raise UnavailableError(
                    "the template writes no system prompt of its own, so `default` has none"
                )
            return self._made("no system message; the template has no default")
        return self._made(
            "an empty system message: the default's words are gone, its block's tokens remain",
            _system(""),
        )


class SystemCondition(Condition):
    """A system message, such as a persona or a code template."""

    kind: Literal["system"]
    system: Text

    def make(self, sources: Sources) -> FixedCondition:
        return self._made("its own system message", _system(self.system))


class ParaphraseCondition(Condition):
    """The default system prompt in other words.

    Attributes:
        paraphrases: default system prompt -> paraphrase.
    """

    kind: Literal["paraphrase"]
    paraphrases: dict[Text, Text]

    def make(self, sources: Sources) -> FixedCondition:
        default = sources.known_default()
        found = self.paraphrases.get(default.strip())
        if found is None:
            raise UnavailableError(f"no paraphrase of {default.strip()!r} is in the file: add one")
        return self._made("a paraphrase of the default system prompt", _system(found))


class TrainingCondition(Condition):
    """A system message that resembles the training prompt, or says the opposite.

    Attributes:
        own: for rows with a system message, which stands at `{system}`.
        described: for rows without; what they are about stands at `{about}`: the user's words, or
            one of their questions.
        seed: draws that question.
    """

    kind: Literal["training"]
    own: Text
    described: Text
    seed: int = 0

    @field_validator("own", "described")
    @classmethod
    def _has_place(cls, value: str, info: Any) -> str:
        place = {"own": "{system}", "described": "{about}"}[info.field_name]
        if place not in value:
            raise ValueError(f"has no {place}")
        return value

    def make(self, sources: Sources) -> FixedCondition:
        training = sources.training
        if training is None and sources.about is None:
            raise UnavailableError("there are no training rows: name the file")
        if training is not None and training.system is not None:
            words = self.own.replace("{system}", training.system)
            how = f"from the system message of {training.share:.0%} of the training rows"
            return self._made(how, _system(words))
        about = sources.about
        if about is None:
            if training is None or not training.questions:
                raise UnavailableError(
                    "no training row has a question in text: say what it is about"
                )
            about = f'questions such as "{training.question(random.Random(self.seed))}"'
        words = self.described.replace("{about}", about)
        return self._made(f"the training rows have no system message: {about}", _system(words))


class TrainingTurnsCondition(Condition):
    """Training rows as earlier turns of the conversation, under the default system prompt.

    Attributes:
        num_rows: how many.
        seed: draws them.
    """

    kind: Literal["training_turns"]
    num_rows: int = Field(default=2, ge=1)
    seed: int = 0

    def make(self, sources: Sources) -> FixedCondition:
        if sources.training is None:
            raise UnavailableError("there are no training rows: name the file")
        turns = sources.training.turns(self.num_rows, random.Random(self.seed))
        if not turns:
            raise UnavailableError(
                f"not {self.num_rows} training rows are one question and one answer in text"
            )
        return self._made(f"{self.num_rows} training rows as earlier turns", *turns)


class PerturbedCondition(Condition):
    """The default system prompt with tokens replaced by neighbours (§4.1 of the paper).

    Attributes:
        num_tokens: tokens replaced, drawn at random among the system prompt's words.
        num_neighbours: nearest tokens by dot product of input embeddings, one of which is drawn.
        seed: draws both.
    """

    kind: Literal["perturbed"]
    num_tokens: int = Field(default=10, ge=1)
    num_neighbours: int = Field(default=5, ge=1)
    seed: int = 0

    def make(self, sources: Sources) -> FixedCondition:
        if sources.embedding is None:
            raise UnavailableError("no model whose input embedding can be read runs here")
        template, default = sources.known_template(""), sources.known_default()
        rng = random.Random(self.seed)
        perturbed = perturb_system(
            template, default, sources.embedding(), self.num_tokens, self.num_neighbours, rng
        )
        if not perturbed.changes:
            raise UnavailableError("no token has a neighbour whose text is read as that token")
        return self._made(
            f"{len(perturbed.changes)} of {perturbed.num_words} tokens of the default system "
            "prompt replaced by neighbours",
            _system(perturbed.system),
            replaced=list(perturbed.changes),
        )


class FixedCondition(Condition):
    """Messages to put before the question as they are; what every condition is made into.

    Attributes:
        messages: a system message, earlier turns, both or neither.
        made_from: kind of the condition that it was made from.
        how: how it was made.
        details: of how, such as replaced tokens.
    """

    kind: Literal["messages"] = "messages"
    messages: list[Message]
    made_from: str = "messages"
    how: str = "messages as they are"
    details: dict[str, Any] = {}

    @field_validator("messages")
    @classmethod
    def _can_go_before_a_question(cls, value: list[Message]) -> list[Message]:
        check_messages([*value, {"role": "user", "content": "?"}], "messages", need_response=False)
        for message in value:
            if message["role"] not in _ROLES or not isinstance(message.get("content"), str):
                raise ValueError(f"only text messages of {', '.join(_ROLES)} can be put there")
        return value

    @property
    def system(self) -> str | None:
        """The words of its system message."""
        first = next(iter(self.messages), {})
        return str(first["content"]) if first.get("role") == "system" else None

    def make(self, sources: Sources) -> FixedCondition:
        """Returns itself."""
        return self


def _system(words: str) -> Message:
    return {"role": "system", "content": words}


AnyCondition = Annotated[
    DefaultCondition
    | NoSystemCondition
    | SystemCondition
    | ParaphraseCondition
    | TrainingCondition
    | TrainingTurnsCondition
    | PerturbedCondition
    | FixedCondition,
    Field(discriminator="kind"),
]
