"""One judge: a model that is asked, asked again when it fails, and never paid twice.

Answers of a judge are kept in Inspect's cache (`INSPECT_CACHE_DIR`), so a run that was killed
starts again where it stopped. What the judge failed at is not kept there and is tried again, with
two exceptions: unreadable text is kept, and each further try of it has an entry of its own.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

import anyio
from inspect_ai.event import ModelEvent
from inspect_ai.log import transcript
from inspect_ai.model import CachePolicy, GenerateConfig, Model, ModelOutput, get_model
from inspect_ai.util import LimitExceededError
from rich.errors import MarkupError
from rich.text import Text

from treft.answers.logs import without_secrets
from treft.errors import ConfigError
from treft.judging.reading import TOP_LOGPROBS, Reading, failed

logger = logging.getLogger(__name__)

KEY_REFUSED = 401
"""Status of an answer to a call whose key is missing or wrong, as providers' errors have it."""


@dataclass(frozen=True)
class JudgeOptions:
    """How a judge is asked; the defaults suit judges that do not think aloud.

    Attributes:
        attempts: calls at most for one judgement, when it fails or cannot be read.
        max_tokens: of the judge's output; a judge that thinks needs room for its thoughts.
        max_retries: of the provider's own retries within one call (rate limits), with back-off.
        timeout: seconds for one call with its retries.
        max_connections: calls at the same time; None leaves that to Inspect, which adapts.
        cache: keep what the judge says, and use what was kept.
    """

    attempts: int = 3
    max_tokens: int = 16
    max_retries: int = 8
    timeout: int = 600
    max_connections: int | None = None
    cache: bool = True

    def __post_init__(self) -> None:
        for name in ("attempts", "max_tokens", "timeout", "max_connections"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1.")
        if self.max_retries < 0:
            raise ConfigError(f"max_retries is {self.max_retries}; it must be at least 0.")


def load_judge(name: str | Model) -> Model:
    """Returns a judge by its Inspect model name; its key comes from the environment.

    Raises:
        ConfigError: there is no such provider, or its key or package is missing.
    """
    if isinstance(name, Model):
        return name
    try:
        return get_model(_cacheable(name), **_model_args(name.partition("/")[0]))
    except Exception as error:  # providers raise what they like
        raise ConfigError(f"the judge {name} cannot be loaded: {one_line(error)}") from None


def one_line(error: Exception) -> str:
    """Returns a provider's message without line ends, Rich's markup, and keys."""
    try:
        text = Text.from_markup(str(error)).plain
    except MarkupError:
        text = str(error)
    words = " ".join(without_secrets(text).split()).removeprefix("ERROR: ")
    return words or type(error).__name__


def _model_args(provider: str) -> dict[str, Any]:
    """Returns what Inspect's providers must be told to judge."""
    if provider == "hf":
        return {"do_sample": False}  # it samples unless told otherwise, and fails at temperature 0
    if provider == "vllm" and os.environ.get("VLLM_BASE_URL"):
        # The server's address is part of a cache entry's key: it has to be known from the first
        # call on, or that call is paid again.
        return {"lazy_init": False}
    return {}


def _cacheable(name: str) -> str:
    """Returns a name without the dots of relative folders: Inspect's cache takes none."""
    provider, _, rest = name.partition("/")
    if not {".", ".."} & set(rest.split("/")) or not os.path.isdir(rest):
        return name
    plain = os.path.normpath(rest)
    return f"{provider}/{os.path.abspath(rest) if plain.startswith('.') else plain}"


class Judge:
    """A model with the options it is asked with.

    Once its key was refused it is asked nothing more: all further judgements are missing.

    Args:
        model: the judge, or its Inspect model name.
        options: how it is asked.

    Raises:
        ConfigError: the model cannot be loaded.
    """

    def __init__(self, model: str | Model, options: JudgeOptions | None = None) -> None:
        self.model = load_judge(model)
        self.options = options or JudgeOptions()
        self._locks: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()
        self._refusal: Reading | None = None

    @property
    def name(self) -> str:
        """Inspect model name."""
        return str(self.model)

    async def ask(self, prompt: str, read: Callable[[ModelOutput], Reading]) -> Reading:
        """Returns the judge's reading of a prompt."""
        if not self.options.cache:
            return await self._try(prompt, read)
        lock = self._locks.get(prompt)
        if lock is None:
            lock = self._locks[prompt] = anyio.Lock()
        async with lock:  # one prompt asked twice at the same time would be paid twice
            return await self._try(prompt, read)

    async def _try(self, prompt: str, read: Callable[[ModelOutput], Reading]) -> Reading:
        for attempt in range(1, self.options.attempts + 1):
            reading = await self._once(prompt, read, attempt)
            if not reading.retry:
                break
        return replace(reading, reason=without_secrets(reading.reason), attempts=attempt)

    async def _once(
        self, prompt: str, read: Callable[[ModelOutput], Reading], attempt: int
    ) -> Reading:
        if self._refusal is not None:
            return self._refusal
        scopes = {} if attempt == 1 else {"attempt": str(attempt)}
        policy = CachePolicy(expiry=None, per_epoch=False, scopes=scopes)
        try:
            output = await self.model.generate(
                prompt,
                config=GenerateConfig(
                    temperature=0.0,
                    max_tokens=self.options.max_tokens,
                    max_retries=self.options.max_retries,
                    timeout=self.options.timeout,
                    max_connections=self.options.max_connections,
                    logprobs=True,
                    top_logprobs=TOP_LOGPROBS,
                ),
                cache=policy if self.options.cache else False,
            )
        except LimitExceededError:
            raise
        except Exception as error:  # whatever goes wrong in a provider is missing data
            logger.debug("judge %s failed: %s", self.name, type(error).__name__)
            lines = str(error).strip().splitlines()
            reading = failed(f"{type(error).__name__}: {lines[-1] if lines else 'no message'}")
            if getattr(error, "status_code", None) == KEY_REFUSED:
                reading = self._refusal = replace(reading, retry=False)
            return reading
        finally:
            _strike_secrets_from_log()
        return read(output)


def _strike_secrets_from_log() -> None:
    """A provider's error may quote the key; Inspect writes errors to its log."""
    for event in transcript().events:
        if isinstance(event, ModelEvent) and event.error:
            event.error = without_secrets(event.error)
            event.traceback = without_secrets(event.traceback or "")
            event.traceback_ansi = without_secrets(event.traceback_ansi or "")
            if event.call is not None:
                event.call = type(event.call).model_validate_json(
                    without_secrets(event.call.model_dump_json())
                )
