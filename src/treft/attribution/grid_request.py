"""How a grid's prompts are asked, and what is still to be done for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from treft.attribution.forcing import Rendering
from treft.errors import ConfigError
from treft.models.sampling import SamplingOptions


@dataclass(frozen=True)
class GridRequest:
    """How every cell is asked; what must be equal for a grid to be continued.

    Attributes:
        rendering: how prompts are rendered, and how long answers get. Answer i to a prompt has the
            same random numbers in each cell, which follow from its seed.
        num_samples: answers to each prompt.
        temperature: of the answers; 0 is greedy.
        scope: where answers count, `general` or `in_domain`.

    Raises:
        ConfigError: options are out of range or do not go together.
    """

    rendering: Rendering = field(default_factory=Rendering)
    num_samples: int = 1
    temperature: float = 1.0
    scope: str = "general"

    def __post_init__(self) -> None:
        """Validate before any work starts."""
        cap = self.rendering.max_new_tokens
        for name, number in (("num_samples", self.num_samples), ("max_new_tokens", cap)):
            if number < 1:
                raise ConfigError(f"{name} is {number}; it must be at least 1.")
        if self.temperature == 0 and self.num_samples > 1:
            raise ConfigError(
                "greedy answers to a prompt are all the same: more samples need a temperature."
            )
        if self.scope not in ("general", "in_domain"):
            raise ConfigError(f"scope is general or in_domain, not {self.scope!r}.")

    @property
    def sampling(self) -> SamplingOptions:
        """How answers are drawn, how long they get, how many prompts run together."""
        rendering = self.rendering
        return SamplingOptions(
            self.temperature,
            max_new_tokens=rendering.max_new_tokens,
            batch_size=rendering.batch_size,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the request as JSON has it."""
        sampling, rendering = self.sampling, self.rendering
        names = ("temperature", "top_p", "top_k", "num_logprobs")
        return {
            "num_samples": self.num_samples,
            "seed": rendering.seed,
            "sampling": {name: getattr(sampling, name) for name in names},
            "max_new_tokens": rendering.max_new_tokens,
            "scope": self.scope,
            "include_think_block": rendering.include_think_block,
            "template_kwargs": dict(rendering.template_kwargs),
        }


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
        """Says it in words."""
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
