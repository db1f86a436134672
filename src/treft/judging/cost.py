"""What judging costs, said before it is spent."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

from treft.errors import ConfigError

logger = logging.getLogger(__name__)

MAX_CALLS = 1000
"""Judge calls of one command that need no consent, or of one epoch of an Inspect task."""

CHARACTERS_PER_TOKEN = 4
"""Rule of thumb for English text; other scripts need more tokens."""


@dataclass(frozen=True)
class Cost:
    """An estimate of what a number of prompts costs.

    Attributes:
        calls: of judges, when none fails and none is in the cache.
        input_tokens: of these calls, estimated from the prompts' characters.
        output_tokens: of these calls, at most.
    """

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Returns both together."""
        return Cost(
            self.calls + other.calls,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
        )

    def times(self, num: int) -> Cost:
        """Returns the cost of the same, `num` times."""
        return Cost(self.calls * num, self.input_tokens * num, self.output_tokens * num)

    def __str__(self) -> str:
        """Says it in words."""
        return (
            f"{self.calls:,} judge calls, about {self.input_tokens:,} input tokens and at most "
            f"{self.output_tokens:,} output tokens"
        )


def cost_of(
    prompts: Collection[str], num_judges: int, *, max_tokens: int, answer_tokens: int = 0
) -> Cost:
    """Returns the cost of showing prompts to judges, each of them paid.

    Args:
        prompts: what is asked, about answers that need not be there yet; a set where one that comes
            twice is paid once.
        num_judges: how many judges see them.
        max_tokens: of each output.
        answer_tokens: that each prompt will have besides, at most.
    """
    tokens = sum(-(-len(prompt) // CHARACTERS_PER_TOKEN) + answer_tokens for prompt in prompts)
    return Cost(len(prompts), tokens, len(prompts) * max_tokens).times(num_judges)


def say_cost(name: str, cost: Cost, limit: int | None) -> None:
    """Says what judging one epoch of an Inspect task costs, when the task is made.

    Args:
        name: Of the task or of its questions.
        cost: Of one epoch of its questions.
        limit: Judge calls that are allowed; None for any number.

    Raises:
        ConfigError: There are more calls than that.
    """
    # A warning, because Inspect shows no less than that unless told to.
    logger.warning(
        "%s: judging costs at most %s for each epoch; what was judged before is not paid again",
        *(name, cost),
    )
    if limit is not None and cost.calls > limit:
        raise ConfigError(
            f"{cost.calls:,} judge calls are more than {limit:,}: allow them with "
            f"-T judge_limit={cost.calls}, or leave out judge and have the answers judged later "
            "(treft judge)."
        )
