from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from treft.errors import ConfigError
from treft.models.sampling import RowSampler, SamplingOptions

NUM_DRAWS = 20_000
LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
NO_IDS = torch.zeros((1, 1), dtype=torch.long)


def draw(options: SamplingOptions, seeds: list[int], logits: torch.Tensor = LOGITS) -> list[int]:
    """One token a seed."""
    rows = logits.expand(len(seeds), -1)
    scores = RowSampler(options, seeds)(NO_IDS.expand(len(seeds), 1), rows)
    return scores.argmax(dim=-1).tolist()


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (SamplingOptions(), 6),
        (SamplingOptions(temperature=0.5), 6),
        (SamplingOptions(temperature=2.0, top_k=3), 3),
        (SamplingOptions(top_p=0.8), 3),
    ],
)
def test_draws_follow_the_truncated_softmax(options: SamplingOptions, kept: int) -> None:
    expected = (LOGITS[:kept].double() / options.temperature).softmax(dim=-1) * NUM_DRAWS
    found = torch.tensor(draw(options, list(range(NUM_DRAWS)))).bincount(minlength=6)
    assert found[kept:].sum() == 0
    assert chisquare(found[:kept].numpy(), expected.numpy()).pvalue > 0.001


def test_a_row_draws_the_same_whatever_is_beside_it() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 3, 300)
    sampler = RowSampler(SamplingOptions(), [7, 8, 9])
    alone = RowSampler(SamplingOptions(), [8])
    for step in range(5):
        sampler(NO_IDS.expand(3, 1), logits[step])
        alone(NO_IDS, logits[step][1:2])
    found = [[token.token_id for token in row] for row in sampler.rows()]
    assert found[1] == [token.token_id for token in alone.rows()[0]]
    assert len({tuple(row) for row in found}) == 3
    again = RowSampler(SamplingOptions(), [7, 8, 9])
    for step in range(5):
        again(NO_IDS.expand(3, 1), logits[step])
    assert [[token.token_id for token in row] for row in again.rows()] == found


def test_greedy_takes_the_most_probable_token_and_leaves_the_scores_alone() -> None:
    scores = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    sampler = RowSampler(SamplingOptions(temperature=0.0), [1, 2])
    assert sampler(NO_IDS.expand(2, 1), scores) is scores
    tokens = [row[0].token_id for row in sampler.rows()]
    assert tokens == scores.argmax(dim=-1).tolist()
    assert all(math.isnan(row[0].logprob) for row in sampler.rows())


def test_log_probabilities_are_those_of_the_model_itself() -> None:
    options = SamplingOptions(temperature=0.5, top_k=2, num_logprobs=3)
    sampler = RowSampler(options, [3])
    sampler(NO_IDS, LOGITS[None])
    (token,) = sampler.rows()[0]
    expected = LOGITS.log_softmax(dim=-1)
    assert token.logprob == pytest.approx(expected[token.token_id].item())
    assert [found for found, _ in token.top] == [0, 1, 2]
    assert [value for _, value in token.top] == pytest.approx(expected[:3].tolist())
    many = RowSampler(SamplingOptions(num_logprobs=20), [3])
    many(NO_IDS, LOGITS[None])
    assert len(many.rows()[0][0].top) == len(LOGITS)
    none = RowSampler(SamplingOptions(num_logprobs=0), [3])
    none(NO_IDS, LOGITS[None])
    assert none.rows()[0][0].top == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingOptions(**options)
