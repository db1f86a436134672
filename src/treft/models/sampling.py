"""Draw each row of a batch with a seed of its own, and keep what was drawn.

`generate` draws a whole batch from one random state, so a row's answer depends on the rows beside
it. Here every row has a generator, and a token is drawn as the argmax of log-probabilities plus
Gumbel noise, which is a sample from the softmax: `generate` itself decodes greedily.

Shapes: B batch rows, V entries of the vocabulary, K log-probabilities kept at each position.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from treft.errors import ConfigError

SAMPLER_DRAWS: dict[str, Any] = {
    "do_sample": False,
    "temperature": None,
    "top_p": None,
    "top_k": None,
    "num_beams": 1,
    "repetition_penalty": 1.0,
}
"""For `generate`: the sampler draws, and sampling options saved with the model do not count."""


def mixed_seed(seed: int | None, *parts: int) -> int:
    """Returns a seed that follows from a seed and further numbers; None stands for a fresh one."""
    start = random.SystemRandom().getrandbits(63) if seed is None else seed
    digest = hashlib.sha256(json.dumps([start, *parts]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True)
class SamplingOptions:
    """How answers are drawn, how long they get, and how many prompts run together.

    Attributes:
        temperature: 0 is greedy.
        top_p: nucleus; 1 keeps all.
        top_k: most probable tokens kept; 0 keeps all.
        num_logprobs: most probable tokens whose log-probabilities are kept; None keeps none.
        max_new_tokens: cap of an answer.
        stop: texts that end an answer and are no part of it.
        batch_size: prompts run together at most; no answer depends on it.

    Raises:
        ConfigError: a number means nothing.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    num_logprobs: int | None = None
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    batch_size: int = 32

    def __post_init__(self) -> None:
        """Validate before any model runs."""
        if self.temperature < 0:
            raise ConfigError(f"temperature is {self.temperature}; it must be 0 or more.")
        for name, value in (
            ("max_new_tokens", self.max_new_tokens),
            ("batch_size", self.batch_size),
        ):
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1.")


class Drawn(NamedTuple):
    """One drawn token.

    Attributes:
        token_id: of the token.
        logprob: of the token before temperature and truncation; NaN when none were asked for.
        top: the most probable tokens with theirs, most probable first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Generated:
    """One answer.

    Attributes:
        text: its words, without special tokens and without the stop text that ended it.
        drawn: its tokens, without the one that ended it.
        num_tokens: tokens generated, the last one included.
        is_ended: an end token or a stop text ended it, and not the cap on its length.
    """

    text: str
    drawn: tuple[Drawn, ...]
    num_tokens: int
    is_ended: bool


class RowSampler(LogitsProcessor):
    """The last logits processor of a greedy `generate`: leaves one token to choose in each row.

    Args:
        options: the same for all rows.
        seeds: one for each row; the same seed and logits give the same tokens.
    """

    def __init__(self, options: SamplingOptions, seeds: Sequence[int]) -> None:
        self.options = options
        self.seeds = list(seeds)
        self._generators: list[torch.Generator] = []
        self._tokens: list[Tensor] = []
        self._logprobs: list[tuple[Tensor, Tensor, Tensor]] = []
        self._warpers: list[LogitsProcessor] = []
        if options.temperature not in (0.0, 1.0):
            self._warpers.append(TemperatureLogitsWarper(options.temperature))
        if options.top_k > 0:
            self._warpers.append(TopKLogitsWarper(options.top_k))
        if options.top_p < 1.0:
            self._warpers.append(TopPLogitsWarper(options.top_p))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Add each row's noise.

        Args:
            input_ids: (B, T) prompt and what was drawn so far.
            scores: (B, V) logits.

        Returns:
            (B, V) scores whose argmax is the token drawn.
        """
        assert scores.shape[0] == len(self.seeds), "one seed for each row"
        drawn = scores if self.options.temperature == 0 else self._noisy(input_ids, scores)
        tokens = drawn.argmax(dim=-1)
        self._tokens.append(tokens)
        if self.options.num_logprobs is not None:
            logprobs = scores.float().log_softmax(dim=-1)
            top = logprobs.topk(min(self.options.num_logprobs, scores.shape[-1]), dim=-1)
            own = logprobs.gather(-1, tokens[:, None])[:, 0]
            self._logprobs.append((own, top.indices, top.values))
        return drawn

    def rows(self) -> list[list[Drawn]]:
        """Returns what was drawn for each row, also after its answer had ended."""
        tokens = torch.stack(self._tokens, dim=1).tolist() if self._tokens else []
        if not self._logprobs:
            return [[Drawn(token, float("nan"), ()) for token in row] for row in tokens]
        own, ids, values = (
            torch.stack(part, dim=1).tolist() for part in zip(*self._logprobs, strict=True)
        )
        return [
            [
                Drawn(token, logprob, tuple(zip(top_ids, top_values, strict=True)))
                for token, logprob, top_ids, top_values in zip(*row, strict=True)
            ]
            for row in zip(tokens, own, ids, values, strict=True)
        ]

    def _noisy(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits after temperature and truncation, plus Gumbel noise."""
        if not self._generators:
            self._generators = [
                torch.Generator(device=scores.device).manual_seed(seed) for seed in self.seeds
            ]
        logits = scores.float()
        for warper in self._warpers:
            logits = warper(input_ids, logits)
        noise = torch.empty_like(logits)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        # -log of an exponential variable is Gumbel noise; no variable may be 0.
        return logits - noise.clamp_(min=torch.finfo(noise.dtype).tiny).log_()


def cut_at_end(
    tokenizer: PreTrainedTokenizerBase,
    drawn: Sequence[Drawn],
    ends: frozenset[int],
    stop: Sequence[str],
) -> Generated:
    """Cut a row where its answer ended.

    Args:
        tokenizer: decodes the answer.
        drawn: what `RowSampler.rows` has of it.
        ends: tokens that end an answer.
        stop: texts that do.
    """
    ids = [token.token_id for token in drawn]
    end = next((index for index, token_id in enumerate(ids) if token_id in ends), None)
    num_tokens, is_ended = len(ids) if end is None else end + 1, end is not None
    ids = ids[:end]
    if (stopped := _tokens_to_stop(tokenizer, ids, stop)) is not None:
        ids, num_tokens, is_ended = ids[:stopped], stopped, True
    text = before_stop(tokenizer.decode(ids, skip_special_tokens=True), stop)
    return Generated(text, tuple(drawn[: len(ids)]), num_tokens, is_ended)


def before_stop(text: str, stop: Sequence[str]) -> str:
    """Returns what comes before the first stop text."""
    return text[: min((text.index(part) for part in stop if part in text), default=len(text))]


def _tokens_to_stop(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop: Sequence[str]
) -> int | None:
    """The least number of tokens whose text holds a stop text, found by halving."""

    def holds(num: int) -> bool:
        text = tokenizer.decode(ids[:num])
        return any(part in text for part in stop)

    if not stop or not holds(len(ids)):
        return None
    low, high = 0, len(ids)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
