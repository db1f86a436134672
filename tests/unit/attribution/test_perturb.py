"""Perturbed prompts: which tokens go, which come, and what is never touched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedTokenizerFast

from treft.attribution.options import Perturbation, PerturbOptions
from treft.attribution.perturb import PerturbedPrompt, perturb_tokens
from treft.chat.regions import ChatRegions, find_regions
from treft.errors import ConfigError, TemplateError
from treft.models.perturbation import neighbours_of, ordinary_tokens

NUM_ROWS = 400
"""More rows than the tokenizer has tokens, as padded embeddings have."""


@pytest.fixture(scope="module")
def tokenizer(chat_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    assert len(chat_tokenizer) < NUM_ROWS
    return chat_tokenizer


@pytest.fixture(scope="module")
def chats(tokenizer: PreTrainedTokenizerFast) -> dict[str, ChatRegions]:
    texts = {"bank": "Where is the bank? Is it near the river today?", "rain": "What weather?"}
    return {
        id: find_regions(tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True)
        for id, text in texts.items()
    }


def special_ids(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """`<|im_start|>` is added, yet not among `all_special_ids`."""
    return {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}


def luring_embedding(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Special tokens and rows without a token have by far the largest products with everything."""
    embedding = torch.randn(NUM_ROWS, 16, generator=torch.Generator().manual_seed(0)).abs()
    embedding[len(tokenizer) :] += 50
    embedding[sorted(special_ids(tokenizer))] += 50
    return embedding


def check(prompt: PerturbedPrompt, chat: ChatRegions, barred: set[int]) -> None:
    """Changes are in the region, to another ordinary token, and everything else is as before."""
    changed = {change.position: change for change in prompt.changes}
    assert set(changed) <= set(chat.positions(prompt.region))
    for position, (old, new) in enumerate(zip(chat.input_ids, prompt.input_ids, strict=True)):
        if position not in changed:
            assert old == new
            continue
        assert (changed[position].old, changed[position].new) == (old, new)
        assert new != old
        assert new not in barred


@pytest.mark.parametrize("method", ["nearest", "random"])
@pytest.mark.parametrize("special_tokens", [False, True])
def test_no_special_token_ever_comes(
    method: Any,
    special_tokens: bool,
    tokenizer: PreTrainedTokenizerFast,
    chats: dict[str, ChatRegions],
) -> None:
    embedding = luring_embedding(tokenizer)
    special = special_ids(tokenizer)
    barred = special | set(range(len(tokenizer), NUM_ROWS))
    wanted = tuple(Perturbation(region, method) for region in ("prefix", "query", "postfix"))
    options = PerturbOptions(wanted, 3, 5, 2, special_tokens)
    gone: set[int] = set()
    for seed in range(40):
        for prompt in perturb_tokens(tokenizer, embedding, chats, options, seed):
            check(prompt, chats[prompt.question_id], barred)
            gone |= {change.old for change in prompt.changes}
            assert len(prompt.changes) == min(3, prompt.num_replaceable)
    assert special <= gone | {0} if special_tokens else not gone & special


def test_neighbours_are_those_of_the_whole_matrix(tokenizer: PreTrainedTokenizerFast) -> None:
    embedding = luring_embedding(tokenizer).bfloat16()
    ordinary = ordinary_tokens(tokenizer, NUM_ROWS)
    tokens = [5, 9, 200, 9]
    products = embedding.float().numpy() @ embedding.float().numpy().T
    for max_bytes in (1, 4096, 2**28):
        found = neighbours_of(embedding, tokens, 5, ordinary, max_bytes)
        assert set(found) == set(tokens)
        for token, near in found.items():
            order = np.argsort(-products[token], kind="stable")
            allowed = [int(t) for t in order if t in ordinary and t != token]
            assert sorted(products[token, list(near)]) == sorted(products[token, allowed[:5]])


class PeakTensor(TorchDispatchMode):
    """Keeps the size of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor) and tensor._is_view() is False:
                self.num_bytes = max(self.num_bytes, tensor.numel() * tensor.element_size())
        return made


def test_the_search_never_holds_a_float_copy_of_a_large_embedding() -> None:
    """150,000 rows, in half precision; neither they nor their products fit at once."""
    num_rows, max_bytes = 150_000, 2**22
    embedding = torch.randn(
        num_rows, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float32
    ).half()
    ordinary = range(10, num_rows)
    tokens = list(range(100, 120))
    with PeakTensor() as peak:
        found = neighbours_of(embedding, tokens, 5, ordinary, max_bytes)
    assert 0 < peak.num_bytes <= max_bytes
    products = embedding[tokens].float() @ embedding.float().T
    products[:, :10] = -torch.inf
    products[torch.arange(20), torch.tensor(tokens)] = -torch.inf
    expected = products.topk(5, dim=1)
    for row, token in enumerate(tokens):
        assert products[row, list(found[token])].tolist() == pytest.approx(
            expected.values[row].tolist()
        )


def test_short_regions_are_replaced_whole_and_say_so(
    tokenizer: PreTrainedTokenizerFast, chats: dict[str, ChatRegions]
) -> None:
    options = PerturbOptions((Perturbation("postfix"),), num_tokens=10, num_trials=2)
    embedding = luring_embedding(tokenizer)
    for prompt in perturb_tokens(tokenizer, embedding, chats, options):
        chat = chats[prompt.question_id]
        ordinary = [
            position
            for position in chat.positions("postfix")
            if chat.input_ids[position] not in special_ids(tokenizer)
        ]
        assert 0 < len(ordinary) < 10
        assert prompt.num_replaceable == len(prompt.changes) == len(ordinary)


def texts(prompts: Sequence[PerturbedPrompt], id: str) -> list[tuple[int, ...]]:
    return [prompt.input_ids for prompt in prompts if prompt.question_id == id]


def test_a_version_depends_on_its_own_seed_alone(
    tokenizer: PreTrainedTokenizerFast, chats: dict[str, ChatRegions]
) -> None:
    embedding, query = luring_embedding(tokenizer), Perturbation("query")
    options = PerturbOptions((Perturbation("prefix"), query), 2, 5, 4)
    both = list(perturb_tokens(tokenizer, embedding, chats, options))
    rain = {"rain": chats["rain"]}
    alone = list(perturb_tokens(tokenizer, embedding, rain, PerturbOptions((query,), 2, 5, 4)))
    of_query = [prompt for prompt in both if prompt.region == "query"]
    assert texts(of_query, "rain") == texts(alone, "rain")
    assert len(set(texts(of_query, "rain"))) > 1
    assert len({prompt.seed for prompt in both}) == len(both) == 16
    for prompt in both:
        decoded = tokenizer.decode(prompt.input_ids, clean_up_tokenization_spaces=False)
        assert prompt.text == decoded


def test_what_cannot_be_perturbed_is_refused(
    tokenizer: PreTrainedTokenizerFast, chats: dict[str, ChatRegions]
) -> None:
    for region, method in (("response", "nearest"), ("prefix", "spell"), ("prefix", "rephrase")):
        with pytest.raises(ConfigError):
            Perturbation(region, method)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="num_trials is 0"):
        PerturbOptions((Perturbation("query"),), num_trials=0)
    embedding = luring_embedding(tokenizer)
    many = PerturbOptions((Perturbation("query"),), num_neighbours=len(tokenizer))
    with pytest.raises(ConfigError, match="take fewer"):
        list(perturb_tokens(tokenizer, embedding, chats, many))
    with pytest.raises(ConfigError, match="offloaded"):
        neighbours_of(embedding.to("meta"), [5], 5, ordinary_tokens(tokenizer, NUM_ROWS))


def test_a_region_of_special_tokens_alone_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    template = "{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}<|im_end|>"
    chat = find_regions(
        tokenizer,
        [{"role": "user", "content": "What weather?"}],
        chat_template=template,
        add_generation_prompt=True,
    )
    embedding = luring_embedding(tokenizer)

    def run(special_tokens: bool) -> list[PerturbedPrompt]:
        wanted = (Perturbation("postfix"),)
        options = PerturbOptions(wanted, num_trials=1, special_tokens=special_tokens)
        return list(perturb_tokens(tokenizer, embedding, {"a": chat}, options))

    with pytest.raises(TemplateError, match="--special-tokens"):
        run(False)
    (prompt,) = run(True)
    assert [change.old_text for change in prompt.changes] == ["<|im_end|>"]
