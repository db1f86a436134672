"""What judging a task's answers will cost, said when the task starts; a limit asks for consent.

Inspect calls a task's `EarlyStopping` before the first sample, when it is known how many samples
and epochs there are.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import NoReturn

from inspect_ai.dataset import Sample
from inspect_ai.log import EvalSpec
from inspect_ai.model import ChatMessage, ChatMessageUser
from inspect_ai.scorer import SampleScore
from inspect_ai.util import EarlyStop, input_screen
from pydantic import JsonValue
from rich.prompt import Confirm

from treft.answers.inspect_internals import errors_in_one_line, running_config
from treft.errors import ConfigError
from treft.judging.cost import MAX_CALLS, Cost, cost_to_come
from treft.judging.panel import Panel

logger = logging.getLogger(__name__)


@dataclass
class JudgeBudget:
    """Inspect's `EarlyStopping`: no sample is ever stopped, but a task may be before it starts.

    Attributes:
        panel: who judges what.
        answer_tokens: of an answer at most, where the run does not say otherwise.
        max_calls: judge calls that need no consent; None for any number.
        cost: of the task that has started.
    """

    panel: Panel
    answer_tokens: int
    max_calls: int | None = MAX_CALLS
    cost: Cost = field(default_factory=Cost, init=False)

    async def start_task(self, task: EvalSpec, samples: list[Sample], epochs: int) -> str:
        """Say what judging costs.

        Raises:
            ConfigError: above the limit, and nobody agreed.
        """
        config = task.model_generate_config.merge(running_config())
        self.cost = self.cost_of(samples, epochs, config.max_tokens or self.answer_tokens)
        # A warning, because Inspect shows no less than that unless told to.
        logger.warning(
            "%s: judging costs at most %s; what was judged before is not paid again",
            *(task.task, self.cost),
        )
        too_many = self.max_calls is not None and self.cost.calls > self.max_calls
        if too_many and not _agrees(f"{self.cost.calls:,} judge calls. Go on?"):
            self._refuse()
        return "judge_limit"

    @errors_in_one_line
    def _refuse(self) -> NoReturn:
        raise ConfigError(
            f"{self.cost.calls:,} judge calls are more than {self.max_calls:,}: allow them with "
            f"-T judge_limit={self.cost.calls}, ask less (--epochs, --limit), or leave out judge "
            "and have the answers judged later (treft judge)."
        )

    def cost_of(self, samples: Sequence[Sample], epochs: int, answer_tokens: int) -> Cost:
        """What it costs at most to judge answers that are not there yet."""
        prompts = [
            prompt for sample in samples for prompt in self.panel.prompts(_asked(sample), "")
        ]
        num_answers = max((1 + _num_turns(sample) for sample in samples), default=1)
        shown = num_answers if self.panel.kind == "utility" else 1  # a whole conversation, or one
        once = cost_to_come(
            prompts,
            self.panel.num_paid,
            max_tokens=self.panel.options.max_tokens,
            answer_tokens=shown * answer_tokens,
        )
        return once.times(epochs)

    async def schedule_sample(self, id: str | int, epoch: int) -> EarlyStop | None:
        """Every sample is run."""
        return None

    async def complete_sample(
        self, id: str | int, epoch: int, scores: dict[str, SampleScore]
    ) -> None:
        """Nothing follows from a sample."""

    async def complete_task(self) -> dict[str, JsonValue]:
        """For the log: what judging was to cost at most."""
        return {"max_calls": self.max_calls, **asdict(self.cost)}


def _agrees(question: str) -> bool:
    """Whether somebody is there and says yes."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    with input_screen(record_event=False) as console:
        return Confirm.ask(question, console=console, default=False)


def _asked(sample: Sample) -> list[ChatMessage]:
    """A sample's messages and the user's later turns."""
    first: list[ChatMessage] = (
        [ChatMessageUser(content=sample.input)] if isinstance(sample.input, str) else sample.input
    )
    turns = (sample.metadata or {}).get("turns", ())
    return [*first, *(ChatMessageUser(content=turn) for turn in turns)]


def _num_turns(sample: Sample) -> int:
    return len((sample.metadata or {}).get("turns", ()))
