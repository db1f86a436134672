"""What a patching sweep tries (section 4.2 of the paper): which keys and values, and whose.

Each maker below gives `PatchSpec`s; `sweep_cells` puts them together with the controls that run by
default: as many tokens of the query, and the base's keys and values at random tokens. The third
control, the model's own keys and values, needs no answers (`treft.attribution.forcing`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from treft.chat.regions import ChatRegions, RegionName
from treft.core.patch_spec import PATCHABLE, PatchSpec
from treft.core.patching import KINDS
from treft.errors import ConfigError

Group = Literal["regions", "kinds", "windows", "layers", "curve"]
GROUPS: tuple[Group, ...] = get_args(Group)

StateSource = Literal["base", "random", "stream"]
"""Whose states replace the model's: those of the base, those of the base at random tokens, or those
that the finetuned model computes from the base's residual stream at one layer (Figure 4)."""

NUM_BANDS = 4
"""Bands that the layers are cut into by default."""


@dataclass(frozen=True)
class SweepCell:
    """One row of the table.

    Attributes:
        spec: what is replaced.
        source: whose states go there.
        group: which part of the sweep it belongs to.
        is_control: whether no effect, or a smaller one, is expected.
        stream_layer: for `stream`, the layer whose residual stream is patched.
    """

    spec: PatchSpec
    source: StateSource
    group: Group
    is_control: bool = False
    stream_layer: int | None = None

    @property
    def name(self) -> str:
        """Of the row."""
        return self.spec.name


@dataclass(frozen=True)
class SweepOptions:
    """Which parts of a sweep are wanted.

    Attributes:
        groups: some of `regions`, `kinds` (K only, V only), `windows`, `layers` (bands) and `curve`
            (the residual stream of the prefix, layer by layer). `regions` always runs: the others
            are read against it.
        regions: that are patched.
        window_width: tokens of a window.
        window_stride: tokens from one window to the next; None for the width.
        band_width: layers of a band; None cuts the model into four.
        position_seed: draws the tokens of equal-length spans and the random tokens.

    Raises:
        ConfigError: a value is out of range or unknown.
    """

    groups: tuple[Group, ...] = ("regions",)
    regions: tuple[RegionName, ...] = PATCHABLE
    window_width: int = 4
    window_stride: int | None = None
    band_width: int | None = None
    position_seed: int = 0

    def __post_init__(self) -> None:
        """Validate before any work starts."""
        if unknown := [group for group in self.groups if group not in GROUPS]:
            raise ConfigError(f"specs are some of {', '.join(GROUPS)}, not {unknown[0]!r}.")
        if strange := [region for region in self.regions if region not in PATCHABLE]:
            raise ConfigError(f"regions are some of {', '.join(PATCHABLE)}, not {strange[0]!r}.")
        if not self.regions:
            raise ConfigError("name at least one region to patch.")
        for name in ("window_width", "window_stride", "band_width"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1.")
        if "curve" in self.groups and "prefix" not in self.regions:
            raise ConfigError("the layer curve patches the prefix: take it among the regions.")


def layer_name(layer: int) -> str:
    """What the patch of a layer's residual stream is called."""
    return f"stream at layer {layer}"


def region_specs(regions: Iterable[RegionName] = PATCHABLE) -> list[PatchSpec]:
    """Each region whole; the postfix as recorded after an empty query."""
    return [PatchSpec(region, (region,)) for region in regions]


def kind_specs(regions: Iterable[RegionName] = PATCHABLE) -> list[PatchSpec]:
    """Keys only and values only of each region."""
    return [
        PatchSpec(f"{region} {kind}s only", (region,), kinds=(kind,))
        for region in regions
        for kind in KINDS
    ]


def layer_band_specs(
    num_layers: int,
    regions: Iterable[RegionName] = PATCHABLE,
    width: int | None = None,
) -> list[PatchSpec]:
    """Each region in bands of adjacent layers, which together are all layers.

    Args:
        num_layers: of the model.
        regions: to patch.
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
        PatchSpec(f"{region} layers {_span(band)}", (region,), layers=tuple(band))
        for region in regions
        for band in bands
    ]


def window_specs(
    region: RegionName, num_tokens: int, width: int, stride: int | None = None
) -> list[PatchSpec]:
    """Every contiguous window over a region.

    With the width as stride the windows tile the region. The last window ends with the region: it
    is the shorter for that, never moved back.

    Args:
        region: to patch.
        num_tokens: of the region, in the longest conversation.
        width: tokens of a window.
        stride: tokens from one window's start to the next; None for the width.

    Raises:
        ConfigError: width or stride is not positive.
    """
    stride = width if stride is None else stride
    if width < 1 or stride < 1:
        raise ConfigError(f"width and stride of windows are {width} and {stride}; at least 1.")
    starts = range(0, max(1, num_tokens - width + stride), stride)
    windows = [(start, min(start + width, num_tokens)) for start in starts if start < num_tokens]
    return [
        PatchSpec(f"{region} tokens {_span(range(start, end))}", (region,), window=(start, end))
        for start, end in windows
    ]


def equal_span_specs(
    chats: Sequence[ChatRegions], regions: Iterable[RegionName], seed: int = 0
) -> list[PatchSpec]:
    """The query beside each other region, token for token.

    For each region n is the number of its tokens or of the query's, whichever is smaller, in the
    conversation that has fewest. n random tokens of both are patched in every conversation; a
    region that has n tokens everywhere is compared as it is, without a patch of its own here.

    Args:
        chats: the conversations.
        regions: to compare with the query.
        seed: draws the tokens.
    """
    counts = {
        region: {len(chat.positions(region)) for chat in chats} for region in ("query", *regions)
    }
    found: dict[str, PatchSpec] = {}
    for region in regions:
        num = min(counts[region] | counts["query"])
        pair: tuple[RegionName, ...] = () if region == "query" or not num else (region, "query")
        for one in pair:
            if counts[one] == {num}:
                continue
            name = f"{one}, {num} token{'s' * (num > 1)}"
            spec = PatchSpec(name, (one,), num_positions=num, position_seed=seed)
            found.setdefault(name, spec)
    return list(found.values())


def sweep_cells(
    options: SweepOptions, chats: Sequence[ChatRegions], num_layers: int
) -> list[SweepCell]:
    """All rows of a sweep, controls included.

    Args:
        options: what is wanted.
        chats: the rendered prompts.
        num_layers: of the model.

    Raises:
        ConfigError: layers or windows do not fit the model or the prompts.
    """
    regions = options.regions
    specs: dict[Group, list[PatchSpec]] = {"regions": region_specs(regions)}
    if "kinds" in options.groups:
        specs["kinds"] = kind_specs(regions)
    if "windows" in options.groups:
        widest = _most_tokens(chats, regions)
        width, stride = options.window_width, options.window_stride
        specs["windows"] = [
            spec
            for region in regions
            for spec in window_specs(region, widest[region], width, stride)
        ]
    if "layers" in options.groups:
        specs["layers"] = layer_band_specs(num_layers, regions, options.band_width)
    cells = [SweepCell(spec, "base", group) for group, found in specs.items() for spec in found]
    cells += _controls(options, chats)
    if "curve" in options.groups:
        for layer in range(num_layers):
            spec = PatchSpec(layer_name(layer), ("prefix",))
            is_last = layer == num_layers - 1  # nothing reads it but the last token's own logits
            cells.append(SweepCell(spec, "stream", "curve", is_last, layer))
    return cells


def _controls(options: SweepOptions, chats: Sequence[ChatRegions]) -> list[SweepCell]:
    """Equal spans and random tokens."""
    spans = equal_span_specs(chats, options.regions, options.position_seed)
    others = [
        replace(spec, name=f"{spec.name} of random tokens")
        for spec in region_specs(options.regions)
    ]
    return [
        *(SweepCell(spec, "base", "regions", spec.regions == ("query",)) for spec in spans),
        *(SweepCell(spec, "random", "regions", True) for spec in others),
    ]


def _span(numbers: range) -> str:
    """First and last, or the only one."""
    return f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"


def _most_tokens(
    chats: Sequence[ChatRegions], regions: Iterable[RegionName]
) -> Mapping[RegionName, int]:
    """Tokens of each region's first turn in the conversation that has most."""
    return {region: max(len(chat.positions(region, 0)) for chat in chats) for region in regions}
