"""How a grid's prompts are asked, and what is still to be done for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from treft.answers.questions import EvalQuestion
from treft.attribution.forcing import render_questions
from treft.chat.regions import ChatRegions
from treft.errors import ConfigError
from treft.models.sampling import SamplingOptions


@dataclass(frozen=True)
class GridRequest:
    """How every cell is asked; what must be equal for a grid to be continued.

    Attributes:
        num_samples: answers to each prompt.
        seed: of all that is drawn; answer i to a prompt has the same random numbers in each cell.
        sampling: how answers are drawn, how long they get, how many prompts run together.
        scope: where answers count, `general` or `in_domain`.
        include_think_block: an empty think block belongs to the postfix.
        template_kwargs: further template variables.

    Raises:
        ConfigError: options are out of range or do not go together.
    """

    num_samples: int = 1
    seed: int = 0
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    scope: str = "general"
    include_think_block: bool = True
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Validate before any work starts."""
        cap = self.sampling.max_new_tokens
        for name, number in (("num_samples", self.num_samples), ("max_new_tokens", cap)):
            if number < 1:
                raise ConfigError(f"{name} is {number}; it must be at least 1.")
        if self.sampling.temperature == 0 and self.num_samples > 1:
            raise ConfigError(
                "greedy answers to a prompt are all the same: more samples need a temperature."
            )
        if self.scope not in ("general", "in_domain"):
            raise ConfigError(f"scope is general or in_domain, not {self.scope!r}.")

    def render(
        self, tokenizer: PreTrainedTokenizerBase, questions: Sequence[EvalQuestion]
    ) -> list[ChatRegions]:
        """Returns the prompts as the model reads them.

        Raises:
            DataError: there is no question, or one has several turns.
            TemplateError: a prompt cannot be rendered; names the question.
        """
        return render_questions(
            tokenizer,
            questions,
            template_kwargs=self.template_kwargs,
            include_think_block=self.include_think_block,
        )


@dataclass(frozen=True)
class Cost:
    """What is still to be done, at most.

    Attributes:
        num_answers: answers to generate.
        num_prompt_tokens: tokens that go through the model for them, padding apart.
        num_new_tokens: cap of the tokens to generate.
        num_recordings: prompts that the base runs through so that its states are known.
        num_rephrasings: calls of the rephraser, when none fails.
        num_log_probs: answers to run through a model for their log-probability.
        num_judge_calls: calls of paid judges; what they said before is in Inspect's cache and costs
            nothing.
    """

    num_answers: int = 0
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    num_recordings: int = 0
    num_rephrasings: int = 0
    num_log_probs: int = 0
    num_judge_calls: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*map(sum, zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def total(self) -> int:
        """Answers and calls together."""
        return self.num_answers + self.num_rephrasings + self.num_judge_calls

    def __str__(self) -> str:
        """In words."""
        words = f"{self.num_answers:,} answers"
        if self.num_prompt_tokens:
            words += (
                f" ({self.num_prompt_tokens:,} tokens of prompts, up to {self.num_new_tokens:,} "
                "new ones)"
            )
        if self.num_recordings:
            words += f", {self.num_recordings:,} forwards to record states"
        if self.num_rephrasings:
            words += f", {self.num_rephrasings:,} rephrasings"
        if self.num_log_probs:
            words += f", {self.num_log_probs:,} log-probabilities of answers"
        return f"{words}, {self.num_judge_calls:,} judge calls"
