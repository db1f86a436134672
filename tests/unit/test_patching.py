"""The cache of eq. (1), against a plain cache that is overwritten by hand token by token."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from finetuned import ARCHITECTURES, add_noise, assert_close, pair, precise
from stepwise import patched_logits, states_by_position
from torch import Tensor
from transformers import DynamicCache, Gemma4TextConfig, Qwen3NextConfig
from transformers.models.auto import AutoModelForCausalLM

from treft.core.patching import (
    PatchedCache,
    RowPatch,
    draw_tokens,
    has_sliding_window,
    prefix_cache,
)
from treft.core.recording import ReferenceRequest, record
from treft.errors import ConfigError, ReferenceMismatchError

IDS = [7, 91, 23, 140, 5, 66, 210, 33, 12, 99, 180, 41]
PLACES = {"start": (0, 1, 2, 3), "middle": (5, 6, 8), "both": (0, 2, 7, 10)}


def row_patch(model: Any, ids: list[int], columns: tuple[int, ...]) -> RowPatch:
    request = ReferenceRequest(tuple(ids), tuple(range(len(ids))), columns)
    return RowPatch(columns, record(model, [request])[0])


@torch.no_grad()
def last_logits(model: Any, ids: list[list[int]], cache: Any, **options: Any) -> Tensor:
    output = model(input_ids=torch.tensor(ids), past_key_values=cache, use_cache=True, **options)
    return output.logits[:, -1]


@pytest.mark.parametrize("columns", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_patched_prefill_and_decoding_equal_a_cache_overwritten_by_hand(
    tiny_model: Callable[..., Any], name: str, columns: tuple[int, ...]
) -> None:
    tuned, base = pair(tiny_model, name)
    cache = PatchedCache(tuned.config, [[row_patch(base, IDS, columns)]], len(IDS))
    states = states_by_position(base, IDS)
    patch = {column: states[column] for column in columns}
    prefill = last_logits(tuned, [IDS], cache)[0]
    assert_close(prefill, patched_logits(tuned, IDS, patch))
    step = last_logits(tuned, [[17]], cache, position_ids=torch.tensor([[len(IDS)]]))[0]
    assert_close(step, patched_logits(tuned, [*IDS, 17], patch))
    unpatched = last_logits(tuned, [IDS], None)[0]
    assert (prefill - unpatched).abs().max() > 1e-3


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_own_states_change_no_logit(tiny_model: Callable[..., Any], name: str) -> None:
    model = precise(tiny_model(name))
    own = row_patch(model, IDS, tuple(range(len(IDS))))
    patched = last_logits(model, [IDS], PatchedCache(model.config, [[own]], len(IDS)))
    assert_close(patched, last_logits(model, [IDS], None))


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
def test_a_prompt_in_chunks_is_patched_like_a_whole_one(
    tiny_model: Callable[..., Any], name: str
) -> None:
    tuned, base = pair(tiny_model, name)
    patch = row_patch(base, IDS, PLACES["both"])
    whole = last_logits(tuned, [IDS], PatchedCache(tuned.config, [[patch]], len(IDS)))
    cache = PatchedCache(tuned.config, [[patch]], len(IDS))
    for start, end in ((0, 3), (3, 8), (8, len(IDS))):
        places = torch.arange(start, end)[None]
        chunk = last_logits(tuned, [IDS[start:end]], cache, position_ids=places)
    assert_close(chunk, whole)


def test_rows_have_their_own_patches_and_may_have_none(tiny_model: Callable[..., Any]) -> None:
    tuned, base = pair(tiny_model, "qwen3")
    other = [*reversed(IDS)]
    rows = [[row_patch(base, IDS, (0, 1))], [], [row_patch(base, other, (4, 6))]]
    batch = last_logits(tuned, [IDS, IDS, other], PatchedCache(tuned.config, rows, len(IDS)))
    for row, (ids, patches) in enumerate(zip((IDS, IDS, other), rows, strict=True)):
        alone = last_logits(tuned, [ids], PatchedCache(tuned.config, [patches], len(IDS)))[0]
        assert_close(batch[row], alone)
    plain = last_logits(tuned, [IDS], None)[0]
    assert_close(batch[1], plain)


def test_repeated_rows_repeat_their_patch(tiny_model: Callable[..., Any]) -> None:
    tuned, base = pair(tiny_model, "llama")
    other = [*reversed(IDS)]
    rows = [[row_patch(base, ids, (1, 2))] for ids in (IDS, other)]
    twice = last_logits(tuned, [IDS, IDS, other, other], PatchedCache(tuned.config, rows, 12))
    once = last_logits(tuned, [IDS, other], PatchedCache(tuned.config, rows, 12))
    assert_close(twice, once.repeat_interleave(2, 0))


def test_a_cache_serves_one_prompt(tiny_model: Callable[..., Any]) -> None:
    tuned, base = pair(tiny_model, "llama")
    cache = PatchedCache(tuned.config, [[row_patch(base, IDS, (0, 1))]], len(IDS))
    last_logits(tuned, [IDS], cache)
    with pytest.raises(ConfigError, match="planned for a prompt of 12 columns"):
        last_logits(tuned, [IDS], cache)
    with pytest.raises(ConfigError, match="planned for a prompt of 5 columns"):
        last_logits(tuned, [IDS], PatchedCache(tuned.config, [[]], 5))
    with pytest.raises(ConfigError, match="planned for 2 prompts"):
        last_logits(tuned, [IDS, IDS, IDS], PatchedCache(tuned.config, [[], []], len(IDS)))


def test_states_of_another_model_are_refused(tiny_model: Callable[..., Any]) -> None:
    tuned = tiny_model("llama").double()
    three_layers = row_patch(tiny_model("gemma3").double(), IDS, (0, 1))
    shallow = RowPatch((0, 1), {0: three_layers.states[0]})
    with pytest.raises(ReferenceMismatchError, match="1 layers"):
        last_logits(tuned, [IDS], PatchedCache(tuned.config, [[shallow]], len(IDS)))
    narrow = RowPatch(
        (0, 1),
        {layer: type(pair)(*(t[:1] for t in pair)) for layer, pair in three_layers.states.items()},
    )
    with pytest.raises(ReferenceMismatchError, match="heads"):
        last_logits(tuned, [IDS], PatchedCache(tuned.config, [[narrow]], len(IDS)))
    with pytest.raises(ReferenceMismatchError, match="layers"):
        prefix_cache(shallow.states, tuned.config, 1)


@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3"])
def test_a_ready_made_prefix_equals_patching_it(tiny_model: Callable[..., Any], name: str) -> None:
    tuned, base = pair(tiny_model, name)
    patch = row_patch(base, IDS, PLACES["start"])
    cache = prefix_cache(patch.states, tuned.config, 1)
    places = torch.arange(4, len(IDS))[None]
    ready = last_logits(tuned, [IDS[4:]], cache, position_ids=places)
    patched = last_logits(tuned, [IDS], PatchedCache(tuned.config, [[patch]], len(IDS)))
    assert_close(ready, patched)


@pytest.mark.parametrize(
    ("name", "slides"), [("llama", False), ("mistral", True), ("gemma3", True), ("gpt_oss", True)]
)
def test_a_ready_made_prefix_is_refused_where_windows_slide(
    tiny_model: Callable[..., Any], name: str, slides: bool
) -> None:
    model = tiny_model(name)
    assert has_sliding_window(model.config) is slides
    if slides:
        with pytest.raises(ConfigError, match="use PatchedCache"):
            prefix_cache(row_patch(model, IDS, (0, 1)).states, model.config, 1)


def test_layers_that_reuse_keys_and_values_get_the_patched_ones() -> None:
    config = Gemma4TextConfig(
        vocab_size=320, vocab_size_per_layer_input=320, hidden_size=32, intermediate_size=48,
        hidden_size_per_layer_input=8, num_hidden_layers=4, num_attention_heads=4, head_dim=8,
        global_head_dim=8, num_key_value_heads=2, num_kv_shared_layers=2, sliding_window=8,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )  # fmt: skip
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config).double().eval()
    tuned = copy.deepcopy(base)
    add_noise(tuned)
    cache = PatchedCache(config, [[row_patch(base, IDS, PLACES["start"])]], len(IDS))
    patched = last_logits(tuned, [IDS], cache)
    by_hand = DynamicCache(config=config)
    last_logits(base, [IDS[:4]], by_hand)
    expected = last_logits(tuned, [IDS[4:]], by_hand, position_ids=torch.arange(4, 12)[None])
    assert_close(patched, expected)
    assert (patched - last_logits(tuned, [IDS], None)).abs().max() > 1e-3


def test_linear_attention_is_refused() -> None:
    config = Qwen3NextConfig(
        num_hidden_layers=2, layer_types=["linear_attention", "full_attention"]
    )
    with pytest.raises(ConfigError, match=r"layers \[0\] of this model have linear attention"):
        PatchedCache(config, [[]], 5)
    with pytest.raises(ConfigError, match=r"layers \[0\] of this model have linear attention"):
        prefix_cache({}, config, 1)


def test_drawn_tokens_keep_their_own_states(tiny_model: Callable[..., Any]) -> None:
    patches = [row_patch(tiny_model("llama"), IDS, places) for places in ((0, 1, 2), (6, 7))]
    drawn = draw_tokens(random.Random(0), patches, 3)
    assert sum(map(len, drawn)) == 3
    for whole, part in zip(patches, drawn, strict=True):
        for token, column in enumerate(part.columns):
            at = whole.columns.index(column)
            for layer, states in part.states.items():
                assert torch.equal(states.key[:, token], whole.states[layer].key[:, at])
                assert torch.equal(states.value[:, token], whole.states[layer].value[:, at])
    assert [p.columns for p in draw_tokens(random.Random(1), patches, 9)] == [(0, 1, 2), (6, 7)]
