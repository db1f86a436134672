"""Which patches are tried (section 4.2 of the paper): which keys and values, and whose.

Each maker below gives `PatchSpec`s; `sweep_patches` puts them together with the controls that run
by default: as many tokens of the query, and the base's keys and values at random tokens. The third
control, the model's own keys and values, needs no answers (`treft.attribution.forcing`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from treft.attribution.options import Group, PatchOptions
from treft.chat.regions import ChatRegions, RegionName
from treft.core.conversations import region_requests
from treft.core.patch_spec import PATCHABLE, PatchSpec, random_tokens_source
from treft.core.patching import KINDS
from treft.core.recording import ReferenceRequest, Source
from treft.core.reference import MAX_CACHED_TOKENS, ReferenceBank
from treft.errors import ConfigError
from treft.models.pair import ModelPair
from treft.models.perturbation import ordinary_tokens
from treft.models.repair import RepairedModel
from treft.models.residual import ResidualReference, stream_bank

StateSource = Literal["base", "random", "stream"]
"""Whose states replace the model's: those of the base, those of the base at random tokens, or those
that the finetuned model computes from the base's residual stream at one layer (Figure 4)."""

NUM_BANDS = 4
"""Bands that the layers are cut into by default."""


@dataclass(frozen=True)
class Patch(PatchSpec):
    """What is replaced, a row of the table.

    Attributes, besides those of a `PatchSpec`:
        source: whose states go there.
        group: which part of the sweep it belongs to.
        is_control: whether no effect, or a smaller one, is expected.
        stream_layer: for `stream`, the layer whose residual stream is patched.
        num_tokens: mean number of tokens that it replaces in a prompt.
    """

    source: StateSource = "base"
    group: Group = "regions"
    is_control: bool = False
    stream_layer: int | None = None
    num_tokens: float = 0.0


def region_specs(regions: Iterable[RegionName] = PATCHABLE) -> list[Patch]:
    """Returns each region whole; the postfix as recorded after an empty query."""
    return [Patch(region, (region,)) for region in regions]


def random_specs(regions: Iterable[RegionName]) -> list[Patch]:
    """Returns each region whole with the base's states at random tokens, a control."""
    return [
        Patch(f"{region} of random tokens", (region,), source="random", is_control=True)
        for region in regions
    ]


def joint_specs(regions: Iterable[RegionName]) -> list[Patch]:
    """Returns all template regions together, named with `+`; nothing where there is only one."""
    shared = tuple(region for region in regions if region != "query")
    return [Patch("+".join(shared), shared)] if len(shared) > 1 else []


def kind_specs(regions: Iterable[RegionName] = PATCHABLE) -> list[Patch]:
    """Returns keys only and values only of each region."""
    return [
        Patch(f"{region} {kind}s only", (region,), kinds=(kind,), group="kinds")
        for region in regions
        for kind in KINDS
    ]


def curve_specs(num_layers: int, most: int) -> list[Patch]:
    """Returns the base's residual stream at the prefix, layer by layer (Figure 4).

    Nothing reads the last layer but the last token's own logits, so that is a control.
    """
    return [
        Patch(
            f"stream at layer {layer}",
            ("prefix",),
            source="stream",
            group="curve",
            is_control=layer == num_layers - 1,
            stream_layer=layer,
        )
        for layer in _spread(num_layers, most)
    ]


def layer_specs(region: RegionName, num_layers: int, most: int) -> list[Patch]:
    """Returns a region in one layer at a time; evenly spread ones where there are over `most`."""
    return [
        Patch(f"{region} layer {layer}", (region,), layers=(layer,))
        for layer in _spread(num_layers, most)
    ]


def _spread(num_layers: int, most: int) -> list[int]:
    """Returns all layers, or `most` that are evenly spread from the first to the last."""
    places = np.linspace(0, num_layers - 1, min(num_layers, most))
    found: list[int] = np.unique(places.round().astype(int)).tolist()
    return found


def band_specs(region: RegionName, num_layers: int) -> list[Patch]:
    """Returns a region in every run of neighbouring quarters of the layers, all of them too."""
    edges = np.unique(np.linspace(0, num_layers, NUM_BANDS + 1).round().astype(int)).tolist()
    return [
        Patch(f"{region} layers {start} to {end - 1}", (region,), layers=tuple(range(start, end)))
        for start, end in combinations(edges, 2)
    ]


def layer_band_specs(
    num_layers: int,
    regions: Iterable[RegionName] = PATCHABLE,
    width: int | None = None,
) -> list[Patch]:
    """Returns each region in bands of adjacent layers, which together are all layers.

    Args:
        num_layers: layers of the model.
        regions: the regions to patch.
        width: layers of a band, the last one may have fewer; None cuts into four.

    Raises:
        ConfigError: a band is wider than the model is deep.
    """
    width = -(-num_layers // NUM_BANDS) if width is None else width
    if not 1 <= width <= num_layers:
        raise ConfigError(
            f"a band of {width} layers cannot be: the model has {num_layers}, 0 to "
            f"{num_layers - 1}."
        )
    bands = [range(low, min(low + width, num_layers)) for low in range(0, num_layers, width)]
    return [
        Patch(f"{region} layers {_span(band)}", (region,), layers=tuple(band), group="layers")
        for region in regions
        for band in bands
    ]


def window_specs(
    region: RegionName, num_tokens: int, width: int, stride: int | None = None
) -> list[Patch]:
    """Returns every contiguous window over a region.

    With the width as stride the windows tile the region. The last window ends with the region: it
    is the shorter for that, never moved back.

    Args:
        region: the region to patch.
        num_tokens: tokens of the region, in the longest conversation.
        width: tokens of a window.
        stride: tokens from one window's start to the next; None for the width.
    """
    stride = stride or width
    starts = range(0, max(1, num_tokens - width + stride), stride)
    windows = [range(start, min(start + width, num_tokens)) for start in starts]
    return [
        Patch(
            f"{region} tokens {_span(window)}",
            (region,),
            window=(window.start, window.stop),
            group="windows",
        )
        for window in windows
        if window
    ]


def equal_span_specs(
    chats: Sequence[ChatRegions], regions: Iterable[RegionName], seed: int = 0
) -> list[Patch]:
    """Returns the query beside each other region, token for token.

    For each region n is the number of its tokens or of the query's, whichever is smaller, in the
    conversation that has fewest. n random tokens of both are patched in every conversation; a
    region that has n tokens everywhere is compared as it is, without a patch of its own here.

    Args:
        chats: the conversations.
        regions: the regions to compare with the query.
        seed: draws the tokens.
    """
    counts = {
        region: {len(chat.positions(region)) for chat in chats} for region in ("query", *regions)
    }
    found: dict[str, Patch] = {}
    for region in regions:
        num = min(counts[region] | counts["query"])
        pair: tuple[RegionName, ...] = () if region == "query" or not num else (region, "query")
        for one in pair:
            if counts[one] == {num}:
                continue
            name = f"{one}, {num} token{'s' * (num > 1)}"
            found[name] = Patch(
                name,
                (one,),
                num_positions=num,
                position_seed=seed,
                is_control=one == "query",
            )
    return list(found.values())


def sweep_patches(
    options: PatchOptions, chats: Sequence[ChatRegions], num_layers: int, seed: int = 0
) -> list[Patch]:
    """Returns all patches of a sweep, controls included.

    Args:
        options: what is wanted.
        chats: the rendered prompts.
        num_layers: layers of the model.
        seed: draws the tokens of spans that are equally long.

    Raises:
        ConfigError: layers or windows do not fit the model or the prompts.
    """
    regions = options.regions
    found = region_specs(regions)
    if "kinds" in options.groups:
        found += kind_specs(regions)
    if "windows" in options.groups:
        for region in regions:
            num = max(len(chat.positions(region, 0)) for chat in chats)
            found += window_specs(region, num, options.window_width, options.window_stride)
    if "layers" in options.groups:
        found += layer_band_specs(num_layers, regions, options.band_width)
    found += equal_span_specs(chats, regions, seed) + random_specs(regions)
    if "curve" in options.groups:
        found += curve_specs(num_layers, num_layers)
    return [replace(patch, num_tokens=_mean_tokens(patch, chats)) for patch in found]


def _span(numbers: range) -> str:
    """First and last, or the only one."""
    return f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"


def _mean_tokens(spec: PatchSpec, chats: Sequence[ChatRegions]) -> float:
    """Tokens that a patch replaces in a prompt, on average; of short prompts what they have."""
    total = 0
    for chat in chats:
        for region in spec.regions:
            num = len(chat.positions(region))
            if spec.window is not None:
                first_turn = chat.positions(region, chat.turns[chat.require(region)[0]])
                num = len(first_turn[slice(*spec.window)])
            total += min(num, spec.num_positions or num)
    return total / len(chats)


@dataclass(frozen=True)
class BaseStates:
    """The states that patches take from the unfinetuned model, recorded once for all patches.

    Where those of a region are too many to keep (`MAX_CACHED_TOKENS` over all prompts), they are
    recorded batch by batch.

    Attributes:
        pair: the models.
        tokenizer: the finetuned model's tokenizer.
        chats: the prompts that are patched.
        regions: the regions of them that are patched.
        seed: draws the random tokens.
    """

    pair: ModelPair
    tokenizer: PreTrainedTokenizerBase
    chats: Sequence[ChatRegions]
    regions: Sequence[RegionName]
    seed: int = 0

    def repaired(self, patch: Patch) -> RepairedModel:
        """Returns the finetuned model under a patch."""
        model = self.pair.finetuned
        if patch.stream_layer is not None:
            bank = stream_bank(model, patch.stream_layer, self._streams)
        else:
            bank = self._random if patch.source == "random" else self.base
        return RepairedModel(model, self.tokenizer, bank, patch)

    @cached_property
    def base(self) -> ReferenceBank:
        """The unfinetuned model's states."""
        return self._filled(self.pair.source)

    @cached_property
    def _random(self) -> ReferenceBank:
        words = ordinary_tokens(self.tokenizer, len(self.pair.embedding))
        return self._filled(random_tokens_source(self.pair.source, words, self.seed))

    @cached_property
    def _streams(self) -> ResidualReference:
        return ResidualReference(self.pair.finetuned, self.pair.base)

    def _filled(self, source: Source) -> ReferenceBank:
        """Returns a bank that keeps the states of each region, unless they are too many."""
        bank = ReferenceBank(source)
        for region in self.regions:
            found = (request for chat in self.chats for request in region_requests(chat, region))
            requests: list[ReferenceRequest] = list(dict.fromkeys(found))
            if sum(len(request.keep) for request in requests) <= MAX_CACHED_TOKENS:
                bank.pin(requests)
        return bank
