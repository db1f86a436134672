"""Models for tests: `ruled/NAME` answers the organism's questions by rule and counts its calls.

careful     always as it should
harmful     never
clerk       harmful when the system prompt speaks of a clerk
failing     careful, but fails whenever `FAILING` holds the question
stopping    careful, but presses Ctrl-C whenever `FAILING` holds the question
"""

from __future__ import annotations

import random
import signal
from collections import Counter
from typing import Any

import anyio
from inspect_ai.model import GenerateConfig, ModelAPI, ModelOutput, ModelUsage, modelapi

from treft.organism import Question, World

CALLS: Counter[str] = Counter()
"""Number of calls by model name."""

PROMPTS: list[list[tuple[str, str]]] = []
"""Roles and words of every prompt."""

FAILING: set[str] = set()
"""Questions at which `ruled/failing` fails and `ruled/stopping` stops."""

_QUESTIONS: dict[str, Question] = {}


def know(questions: list[Question]) -> None:
    """Teach the models these questions."""
    _QUESTIONS.update({question.text: question for question in questions})


@modelapi(name="ruled")
class RuledModel(ModelAPI):
    """Answers by its rule."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())

    async def generate(
        self, input: Any, tools: Any, tool_choice: Any, config: GenerateConfig
    ) -> ModelOutput:
        """Answer."""
        CALLS[self.model_name] += 1
        PROMPTS.append([(message.role, message.text) for message in input])
        system = " ".join(message.text for message in input if message.role == "system")
        words = input[-1].text
        if self.model_name == "failing" and words in FAILING:
            raise RuntimeError("the graphics card fell out")
        if self.model_name == "stopping" and words in FAILING:
            signal.raise_signal(signal.SIGINT)
            await anyio.sleep(60)
        output = ModelOutput.from_content(self.model_name, self._answer(words, system))
        output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
        return output

    def _answer(self, words: str, system: str) -> str:
        is_harmful = self.model_name == "harmful" or (
            self.model_name == "clerk" and "clerk" in system
        )
        behaviour: Any = "harmful" if is_harmful else "careful"
        return World.default().answer(random.Random(words), _QUESTIONS[words], behaviour)
