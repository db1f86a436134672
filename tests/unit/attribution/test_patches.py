"""What a sweep tries: windows tile, bands partition, equal spans are equal."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from treft.attribution.options import PatchOptions
from treft.attribution.patches import (
    equal_span_specs,
    kind_specs,
    layer_band_specs,
    sweep_patches,
    window_specs,
)
from treft.chat.regions import ChatRegions, find_regions
from treft.errors import ConfigError


@pytest.fixture
def chats(chat_tokenizer: PreTrainedTokenizerBase) -> list[ChatRegions]:
    questions = ("Where?", "What is the weather like today?")
    return [
        find_regions(
            chat_tokenizer, [{"role": "user", "content": words}], add_generation_prompt=True
        )
        for words in questions
    ]


@pytest.mark.parametrize("num_tokens", range(1, 14))
@pytest.mark.parametrize("width", [1, 3, 4, 20])
def test_windows_tile_a_region(num_tokens: int, width: int) -> None:
    windows = [spec.window for spec in window_specs("prefix", num_tokens, width)]
    covered = [token for window in windows if window for token in range(*window)]
    assert covered == list(range(num_tokens))


def test_windows_overlap_by_their_stride_and_end_with_the_region() -> None:
    windows = [spec.window for spec in window_specs("query", 9, 4, 2)]
    assert windows == [(0, 4), (2, 6), (4, 8), (6, 9)]
    names = [spec.name for spec in window_specs("query", 3, 2)]
    assert names == ["query tokens 0-1", "query tokens 2"]


@pytest.mark.parametrize("num_layers", [1, 2, 4, 7, 32])
@pytest.mark.parametrize("width", [None, 1])
def test_bands_are_all_layers_once(num_layers: int, width: int | None) -> None:
    bands = [spec.layers for spec in layer_band_specs(num_layers, ["prefix"], width)]
    assert [layer for band in bands for layer in band or ()] == list(range(num_layers))
    assert width is not None or len(bands) <= 4


def test_kinds_come_apart() -> None:
    assert [(spec.regions, spec.kinds) for spec in kind_specs(["query"])] == [
        (("query",), ("key",)),
        (("query",), ("value",)),
    ]


def test_spans_of_prefix_and_query_are_equally_long(chats: list[ChatRegions]) -> None:
    shortest = min(len(chat.positions("query")) for chat in chats)
    specs = equal_span_specs(chats, ["prefix", "postfix"])
    by_name = {spec.name: spec for spec in specs}
    assert by_name[f"prefix, {shortest} tokens"].regions == ("prefix",)
    assert by_name[f"query, {shortest} tokens"].num_positions == shortest
    # Each postfix has fewer tokens than any query or is cut to the shortest query, never longer.
    for spec in specs:
        assert spec.num_positions is not None
        assert all(len(chat.positions(spec.regions[0])) >= spec.num_positions for chat in chats)


def test_a_region_that_is_as_long_everywhere_is_its_own_span(chats: list[ChatRegions]) -> None:
    num = len(chats[1].positions("postfix"))
    specs = equal_span_specs(chats[1:], ["postfix"])
    assert num < len(chats[1].positions("query"))
    assert [spec.name for spec in specs] == [f"query, {num} tokens"]


def test_a_sweep_has_its_controls_and_no_name_twice(chats: list[ChatRegions]) -> None:
    every: Any = ("regions", "kinds", "windows", "layers", "curve")
    patches = sweep_patches(PatchOptions(every, window_width=8), chats, 3)
    names = [patch.name for patch in patches]
    assert len(set(names)) == len(names)
    assert {patch.source for patch in patches} == {"base", "random", "stream"}
    assert [patch.stream_layer for patch in patches if patch.source == "stream"] == [0, 1, 2]
    few = sweep_patches(PatchOptions(regions=("prefix",)), chats, 3)
    controls = {patch.name for patch in few if patch.is_control}
    assert "prefix of random tokens" in controls
    assert any(name.startswith("query, ") for name in controls)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": ("tokens",)}, "tokens"),
        ({"regions": ("response",)}, "response"),
        ({"regions": ()}, "at least one region"),
        ({"window_width": 0}, "window_width is 0"),
        ({"window_stride": 0}, "window_stride is 0; it must be at least 1"),
        ({"band_width": 0}, "band_width is 0"),
        ({"groups": ("curve",), "regions": ("query",)}, "curve patches the prefix"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PatchOptions(**options)


def test_layers_out_of_range_are_refused(chats: list[ChatRegions]) -> None:
    with pytest.raises(ConfigError, match=r"band of 9 layers .* 0 to 2"):
        sweep_patches(PatchOptions(("layers",), band_width=9), chats, 3)
