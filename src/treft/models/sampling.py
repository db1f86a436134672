"""Draw each row of a batch with a seed of its own, and keep what was drawn.

`generate` draws a whole batch from one random state, so a row's answer depends on the rows beside
it. Here every row has a generator, and a token is drawn as the argmax of log-probabilities plus
Gumbel noise, which is a sample from the softmax: `generate` itself decodes greedily.

Shapes: B batch rows, V entries of the vocabulary, K log-probabilities kept at each position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

SAMPLER_DRAWS: dict[str, Any] = {
    "do_sample": False,
    "temperature": None,
    "top_p": None,
    "top_k": None,
    "num_beams": 1,
    "repetition_penalty": 1.0,
}
"""For `generate`: the sampler draws, and sampling options saved with the model do not count."""


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are drawn.

    Attributes:
        temperature: 0 is greedy.
        top_p: nucleus; 1 keeps all.
        top_k: most probable tokens kept; 0 keeps all.
        num_logprobs: most probable tokens whose log-probabilities are kept; None keeps none.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    num_logprobs: int | None = None


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


class RowSampler(LogitsProcessor):
    """The last logits processor of a greedy `generate`: leaves one token to choose in each row.

    Args:
        options: the same for all rows.
        seeds: one for each row; the same seed and logits give the same tokens.

    Attributes:
        prompts: token ids of each row before anything was drawn, padding included.
    """

    def __init__(self, options: SamplingOptions, seeds: Sequence[int]) -> None:
        self.options = options
        self.seeds = list(seeds)
        self.prompts: list[list[int]] = []
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
        if not self._tokens:
            self.prompts = input_ids.tolist()
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
        """For each row what was drawn, also after the row's answer had ended."""
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
