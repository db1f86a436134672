"""Kinds, layers, windows and sources of a patch, against caches that are edited by hand."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from finetuned import ARCHITECTURES, assert_close, chat_pair
from stepwise import States, states_by_position
from tiny_models import build_tiny_model
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from treft.chat.regions import ChatRegions, find_regions
from treft.core.patch_spec import PatchSpec, random_tokens_source, row_patches
from treft.core.patching import PatchedCache
from treft.core.recording import ReferenceRequest, other_model, record
from treft.core.reference import ReferenceBank
from treft.core.states import KeyValue, listen
from treft.errors import ConfigError

TWO_TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "Where is it?"},
    {"role": "assistant", "content": "Near the bank."},
    {"role": "user", "content": "And the weather?"},
]
KINDS: dict[str, Any] = {"key": ("key",), "value": ("value",), "both": ("key", "value")}


@pytest.fixture
def chats(chat_tokenizer: PreTrainedTokenizerBase) -> list[ChatRegions]:
    return rendered(chat_tokenizer)


def rendered(chat_tokenizer: PreTrainedTokenizerBase) -> list[ChatRegions]:
    question = [{"role": "user", "content": "Is the bank near the river?"}]
    return [
        find_regions(chat_tokenizer, messages, add_generation_prompt=True)
        for messages in (question, TWO_TURNS)
    ]


@torch.no_grad()
def patched(model: Any, chat: ChatRegions, spec: PatchSpec, bank: ReferenceBank) -> Tensor:
    """Logits (V,) after one further token, which sees the patched prompt."""
    rows = row_patches(spec, [chat], [0], bank)
    cache = PatchedCache(model.config, rows, len(chat.input_ids))
    model(input_ids=torch.tensor([chat.input_ids]), past_key_values=cache, use_cache=True)
    return next_logits(model, chat, cache)


@torch.no_grad()
def next_logits(model: Any, chat: ChatRegions, cache: Any) -> Tensor:
    places = torch.tensor([[len(chat.input_ids)]])
    output = model(input_ids=torch.tensor([[17]]), position_ids=places, past_key_values=cache)
    logits: Tensor = output.logits[0, -1]
    return logits


@torch.no_grad()
def edited_by_hand(
    model: Any, theirs: States, chat: ChatRegions, places: list[int], layers: Any, kinds: Any
) -> Tensor:
    """The same in one forward without a cache, in which attention's arguments are overwritten."""

    def overwrite(layer: int, states: KeyValue) -> None:
        for place in places if layer in layers else ():
            key, value = theirs[place]
            if "key" in kinds:
                states.key[0, :, place] = key[layer]
            if "value" in kinds:
                states.value[0, :, place] = value[layer]

    with listen(model, overwrite):
        logits: Tensor = model(torch.tensor([[*chat.input_ids, 17]]), use_cache=False).logits
    return logits[0, -1]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def stepped(
    request: pytest.FixtureRequest, chat_tokenizer: PreTrainedTokenizerBase
) -> tuple[Any, Any, States]:
    """A finetuned model, its base, and the base's states on the first chat, token by token."""
    tuned, base = chat_pair(build_tiny_model, request.param)
    [chat, _] = rendered(chat_tokenizer)
    return tuned, base, states_by_position(base, chat.input_ids)


@pytest.mark.parametrize("layers", [None, (1,)])
@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_kinds_and_layers_equal_a_cache_edited_by_hand(
    stepped: tuple[Any, Any, States], chats: list[ChatRegions], kinds: Any, layers: Any
) -> None:
    tuned, base, theirs = stepped
    spec = PatchSpec("some", ("prefix", "query"), kinds, layers)
    found = patched(tuned, chats[0], spec, ReferenceBank(other_model(base)))
    every = range(tuned.config.num_hidden_layers) if layers is None else layers
    places = [*chats[0].positions("prefix"), *chats[0].positions("query")]
    assert_close(found, edited_by_hand(tuned, theirs, chats[0], places, every, kinds))
    unpatched = edited_by_hand(tuned, theirs, chats[0], [], every, kinds)
    assert (found - unpatched).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_window_of_the_query_is_of_its_first_turn(
    tiny_model: Callable[..., Any], chats: list[ChatRegions], name: str
) -> None:
    tuned, base = chat_pair(tiny_model, name)
    bank = ReferenceBank(other_model(base))
    for chat in chats:
        spec = PatchSpec("window", ("query",), window=(1, 3))
        first = [place for place in chat.positions("query") if chat.turns[place] == 0]
        assert len(first) > 3
        layers = range(tuned.config.num_hidden_layers)
        theirs = states_by_position(base, chat.input_ids)
        expected = edited_by_hand(tuned, theirs, chat, first[1:3], layers, ("key", "value"))
        assert_close(patched(tuned, chat, spec, bank), expected)


def test_windows_keep_to_the_first_turn_and_to_the_tokens_there_are(
    tiny_model: Callable[..., Any], chats: list[ChatRegions]
) -> None:
    bank = ReferenceBank(other_model(tiny_model("llama")))

    def columns(region: Any, window: tuple[int, int]) -> list[list[int]]:
        spec = PatchSpec("window", (region,), window=window)
        rows = row_patches(spec, chats, [0, 1], bank)
        return [[column for patch in row for column in patch.columns] for row in rows]

    for region in ("prefix", "query", "postfix"):
        whole = columns(region, (0, 10_000))
        assert whole == [chat.positions(region, 0) for chat in chats]
        halves = columns(region, (0, 2)), columns(region, (2, 10_000))
        assert [a + b for a, b in zip(*halves, strict=True)] == whole
    assert columns("postfix", (10_000, 10_001)) == [[], []]


def test_a_row_without_a_token_in_the_window_is_left_as_it_is(
    tiny_model: Callable[..., Any], chats: list[ChatRegions]
) -> None:
    tuned, base = chat_pair(tiny_model, "llama")
    spec = PatchSpec("far", ("query",), window=(10_000, 10_001))
    found = patched(tuned, chats[0], spec, ReferenceBank(other_model(base)))
    assert_close(found, edited_by_hand(tuned, {}, chats[0], [], (), ()))


def test_bands_of_layers_together_are_all_layers(
    tiny_model: Callable[..., Any], chats: list[ChatRegions]
) -> None:
    tuned, base = chat_pair(tiny_model, "gemma3")
    bank = ReferenceBank(other_model(base))
    chat = chats[0]

    def cache_with(*layers: tuple[int, ...] | None) -> PatchedCache:
        specs = [PatchSpec("band", ("prefix",), layers=band) for band in layers]
        rows = [[patch for spec in specs for patch in row_patches(spec, [chat], [0], bank)[0]]]
        return PatchedCache(tuned.config, rows, len(chat.input_ids))

    caches = cache_with((0,), (1, 2)), cache_with(None)
    with torch.no_grad():
        logits = [tuned(torch.tensor([chat.input_ids]), past_key_values=c).logits for c in caches]
    assert torch.equal(*logits)


def test_drawn_positions_are_those_of_the_seed_and_the_conversation(
    tiny_model: Callable[..., Any], chats: list[ChatRegions]
) -> None:
    bank = ReferenceBank(other_model(tiny_model("llama")))
    spec = PatchSpec("five", ("query", "prefix"), num_positions=5, position_seed=3)
    rows = row_patches(spec, chats, [4, 9], bank)
    for chat, row, index in zip(chats, rows, (4, 9), strict=True):
        rng = random.Random(f"3/{index}")
        for region, patch in zip(spec.regions, row, strict=True):
            positions = chat.positions(region)
            drawn = sorted(rng.sample([(0, n) for n in range(len(positions))], 5))
            assert patch.columns == tuple(positions[token] for _, token in drawn)


def test_random_tokens_change_only_what_is_kept(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    asked: list[ReferenceRequest] = []

    def source(requests: Any) -> Any:
        asked.extend(requests)
        return record(model, requests)

    request = ReferenceRequest((7, 91, 23, 140), (0, 1, 2, 9), (1, 3))
    states = random_tokens_source(source, range(200, 210), seed=1)([request] * 2)
    first, second = asked
    assert first == second
    assert (first.position_ids, first.keep) == (request.position_ids, request.keep)
    assert [first.token_ids[0], first.token_ids[2]] == [7, 23]
    assert set(first.kept_ids) <= set(range(200, 210))
    assert torch.equal(states[0][0].key, record(model, [first])[0][0].key)
    random_tokens_source(source, range(200, 210), seed=2)([request])
    assert asked[-1] != first


def test_the_tensors_of_the_model_stay_as_they_are(
    tiny_model: Callable[..., Any], chats: list[ChatRegions]
) -> None:
    tuned, base = chat_pair(tiny_model, "llama")
    rows = row_patches(
        PatchSpec("p", ("prefix",)), chats[:1], [0], ReferenceBank(other_model(base))
    )
    cache = PatchedCache(tuned.config, rows, 12)
    key, value = (torch.randn(1, 2, 12, 8, dtype=torch.float64, requires_grad=True) for _ in "kv")
    given = key * 1, value * 1
    before = [tensor.detach().clone() for tensor in given]
    narrow = [[patch.only(range(4)) for patch in row] for row in rows]
    cache = PatchedCache(tuned.config, narrow, 12)
    stored = cache.update(*given, 0)
    assert all(torch.equal(*pair) for pair in zip(given, before, strict=True))
    sum(tensor.sum() for tensor in stored).backward()
    expected = torch.ones(12, dtype=torch.float64)
    expected[:4] = 0
    for leaf in (key, value):
        assert torch.equal(leaf.grad[0, 0, :, 0], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regions": ("prefx",)}, "prefx"),
        ({"regions": ("response",)}, "response"),
        ({"kinds": ()}, "kinds to patch"),
        ({"kinds": ("keys",)}, "keys"),
        ({"layers": (-1,)}, "counted from 0"),
        ({"layers": ()}, "at least one layer"),
        ({"window": (3, 3)}, "at least one token"),
        ({"window": (0, 2), "regions": ("prefix", "query")}, "single region"),
        ({"num_positions": 0}, "at least one token"),
    ],
)
def test_what_means_nothing_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PatchSpec(**{"name": "bad", "regions": ("prefix",), **options})


def test_layers_that_the_model_lacks_are_refused_before_it_runs(
    tiny_model: Callable[..., Any], chats: list[ChatRegions]
) -> None:
    model = tiny_model("llama")
    spec = PatchSpec("deep", ("prefix",), layers=(1, 2))
    rows = row_patches(spec, chats[:1], [0], ReferenceBank(other_model(model)))
    with pytest.raises(ConfigError, match=r"layers \[2\] .* 0 to 1"):
        PatchedCache(model.config, rows, 80)
