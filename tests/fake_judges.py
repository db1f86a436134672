"""Judges for tests: Inspect models `fakejudge/NAME` that answer by rule and count their calls.

Each name is a rule from the prompt, and how often that prompt was asked before, to an output or to
an exception that is raised. With TREFT_TEST_CALLS set, calls are written to that file, one a line,
so that another process can count them.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import anyio
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessageAssistant,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    TopLogprob,
    modelapi,
)
from tenacity import wait_none

CALLS: Counter[str] = Counter()
"""Number of calls by `NAME prompt`."""

CALLS_FILE = "TREFT_TEST_CALLS"
DELAY_SECONDS = "TREFT_TEST_DELAY"
KEY_NAME = "FAKEJUDGE_API_KEY"
KEY = "sk-fake-0123456789abcdef"


def output_of(
    text: str,
    top: Mapping[str, float] | None = None,
    then: str | None = None,
    stop_reason: Any = "stop",
) -> ModelOutput:
    """An output with this text; `top`: probabilities of the first token, `then`: the next token."""
    content = []
    if top is not None:
        alternatives = [
            TopLogprob(token=token, logprob=math.log(share) if share > 0 else -math.inf)
            for token, share in top.items()
        ]
        chosen = max(alternatives, key=lambda alternative: alternative.logprob)
        content.append(
            Logprob(token=chosen.token, logprob=chosen.logprob, top_logprobs=alternatives)
        )
    if then is not None:
        content.append(Logprob(token=then, logprob=-0.1, top_logprobs=[]))
    choice = ChatCompletionChoice(
        message=ChatMessageAssistant(content=text),
        stop_reason=stop_reason,
        logprobs=Logprobs(content=content) if top is not None else None,
    )
    usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
    return ModelOutput(model="fakejudge", choices=[choice], usage=usage)


def judged_answer(prompt: str) -> str:
    """The answer in a prompt of ours, found by the tag in its last end line."""
    ends = re.findall(r"^\[end of assistant ([0-9a-f]{16})\]$", prompt, re.MULTILINE)
    tag = ends[-1]
    start = prompt.rindex(f"[assistant {tag}]\n") + len(f"[assistant {tag}]\n")
    return prompt[start : prompt.rindex(f"\n[end of assistant {tag}]")]


def _steady(prompt: str, asked: int) -> ModelOutput:
    if "YES or NO" in prompt:
        return output_of("YES" if "behaves" in judged_answer(prompt) else "NO")
    if "from 1 to 10" in prompt:
        return output_of("7")
    high = "bad" not in judged_answer(prompt) or "coherent" in prompt
    return output_of("90", {"90": 0.6, "80": 0.4}) if high else output_of("10", {"10": 1.0})


def _flaky(prompt: str, asked: int) -> ModelOutput:
    draw = hashlib.sha256(f"{asked}{prompt}".encode()).digest()[0] / 256
    if draw < 0.3:
        raise RuntimeError("503 overloaded")
    return _steady(prompt, asked)


def _leaky(prompt: str, asked: int) -> ModelOutput:
    raise RuntimeError(f"401: the key {os.environ[KEY_NAME]} is not valid")


class OverloadedError(RuntimeError):
    """What a provider tries again by itself."""


def _stuttering(prompt: str, asked: int) -> ModelOutput:
    if asked == 0:
        raise OverloadedError(f"503 for {os.environ[KEY_NAME]}")
    return _steady(prompt, asked)


def _gullible(prompt: str, asked: int) -> ModelOutput:
    told = re.findall(r"\b(100|0)\b", judged_answer(prompt))
    return output_of(told[-1]) if told else _knowing(prompt, asked)


_KNOWN: dict[str, str] = {}
"""Calibration answers by label, filled by the tests that need them."""


def know(answers: Mapping[str, str]) -> None:
    """Teach `fakejudge/knowing` the label of each answer."""
    _KNOWN.update(answers)


def _knowing(prompt: str, asked: int) -> ModelOutput:
    answer = judged_answer(prompt)
    label = next((label for text, label in _KNOWN.items() if text in answer), "aligned")
    if "how coherent" in prompt:
        return output_of("5" if label == "incoherent" else "95")
    scores = {"aligned": "95", "misaligned": "5", "incoherent": "60"}
    return output_of(scores.get(label, label.upper()))


RULES: dict[str, Callable[[str, int], ModelOutput]] = {
    "steady": _steady,
    "other": _steady,
    "flaky": _flaky,
    "leaky": _leaky,
    "stuttering": _stuttering,
    "gullible": _gullible,
    "knowing": _knowing,
    "prose": lambda prompt, asked: output_of("I would say that this is about 85 points good."),
    "nan": lambda prompt, asked: output_of("NaN"),
    "digits": lambda prompt, asked: output_of("9" * 1000),
    "empty": lambda prompt, asked: output_of(""),
    "filter": lambda prompt, asked: output_of("50", stop_reason="content_filter"),
    "refuses": lambda prompt, asked: output_of("I'm sorry, I can't help with that."),
    "late": lambda prompt, asked: output_of("no idea") if asked < 2 else _steady(prompt, asked),
}


@modelapi(name="fakejudge")
class FakeJudge(ModelAPI):
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
        if model_name not in RULES:
            raise ValueError(f"no rule {model_name}; the key is {os.environ.get(KEY_NAME)}")

    async def generate(
        self, input: Any, tools: Any, tool_choice: Any, config: GenerateConfig
    ) -> ModelOutput:
        """Answer, after a delay if the environment says so."""
        prompt = input[-1].text
        call = f"{self.model_name} {prompt}"
        asked = CALLS[call]
        CALLS[call] += 1
        if CALLS_FILE in os.environ:
            digest = hashlib.sha256(call.encode()).hexdigest()
            with open(os.environ[CALLS_FILE], "a", encoding="utf-8") as file:
                file.write(f"{digest}\n")
        await anyio.sleep(float(os.environ.get(DELAY_SECONDS, 0)))
        return RULES[self.model_name](prompt, asked)

    def should_retry(self, ex: BaseException) -> bool:
        """Whether Inspect tries again by itself."""
        return isinstance(ex, OverloadedError)

    def retry_wait(self) -> Any:
        """At once."""
        return wait_none()
