"""How attribution asks: how prompts are rendered, and which patches or perturbations are tried.

Nothing heavy is imported here, so that a command can refuse an option at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from treft.chat import PATCHABLE, RegionName
from treft.errors import ConfigError

Group = Literal["regions", "kinds", "windows", "layers", "curve"]
GROUPS: tuple[Group, ...] = get_args(Group)

Method = Literal["nearest", "random", "rephrase"]
"""Neighbours in the input embedding, any tokens of the vocabulary, or other words by a model."""

METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class Rendering:
    """How prompts are rendered and answered.

    Attributes:
        template_kwargs: further template variables.
        include_think_block: an empty think block belongs to the postfix.
        max_new_tokens: cap of an answer.
        batch_size: rows run together.
        seed: of drawn tokens.
    """

    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    include_think_block: bool = True
    max_new_tokens: int = 64
    batch_size: int = 16
    seed: int = 0

    @property
    def of_chats(self) -> dict[str, Any]:
        """Keyword arguments of all that renders."""
        return {
            "template_kwargs": self.template_kwargs,
            "include_think_block": self.include_think_block,
        }


@dataclass(frozen=True)
class GridRequest:
    """How every cell is asked; what must be equal for a grid to be continued.

    Attributes:
        rendering: how prompts are rendered, and how long answers get. Answer i to a prompt has the
            same random numbers in each cell, which follow from its seed.
        num_samples: answers to each prompt.
        temperature: of the answers; 0 is greedy.
        scope: where answers count, `general` or `in_domain`.

    Raises:
        ConfigError: options are out of range or do not go together.
    """

    rendering: Rendering = field(default_factory=Rendering)
    num_samples: int = 1
    temperature: float = 1.0
    scope: str = "general"

    def __post_init__(self) -> None:
        """Validate before any work starts."""
        _at_least_one(num_samples=self.num_samples, max_new_tokens=self.rendering.max_new_tokens)
        if self.temperature == 0 and self.num_samples > 1:
            raise ConfigError(
                "greedy answers to a prompt are all the same: more samples need a temperature."
            )
        if self.scope not in ("general", "in_domain"):
            raise ConfigError(f"scope is general or in_domain, not {self.scope!r}.")


@dataclass(frozen=True)
class PatchOptions:
    """Which parts of a sweep are wanted.

    Attributes:
        groups: some of `regions`, `kinds` (K only, V only), `windows`, `layers` (bands) and `curve`
            (the residual stream of the prefix, layer by layer). `regions` always runs: the others
            are read against it.
        regions: the regions that are patched.
        window_width: tokens of a window.
        window_stride: tokens from one window to the next; None for the width.
        band_width: layers of a band; None cuts the model into four.

    Raises:
        ConfigError: a value is out of range or unknown.
    """

    num_trials: ClassVar[int] = 1
    """Versions of each prompt: it is patched as it is."""
    groups: tuple[Group, ...] = ("regions",)
    regions: tuple[RegionName, ...] = PATCHABLE
    window_width: int = 4
    window_stride: int | None = None
    band_width: int | None = None

    def __post_init__(self) -> None:
        """Validate before any work starts."""
        if unknown := [group for group in self.groups if group not in GROUPS]:
            raise ConfigError(f"specs are some of {', '.join(GROUPS)}, not {unknown[0]!r}.")
        if strange := [region for region in self.regions if region not in PATCHABLE]:
            raise ConfigError(f"regions are some of {', '.join(PATCHABLE)}, not {strange[0]!r}.")
        if not self.regions:
            raise ConfigError("name at least one region to patch.")
        _at_least_one(
            window_width=self.window_width,
            window_stride=self.window_stride,
            band_width=self.band_width,
        )
        if "curve" in self.groups and "prefix" not in self.regions:
            raise ConfigError("the layer curve patches the prefix: take it among the regions.")


@dataclass(frozen=True)
class Perturbation:
    """What is perturbed, and how.

    Attributes:
        region: whose tokens are replaced.
        method: where their replacements come from.

    Raises:
        ConfigError: there is no such region or method, or the two do not go together.
    """

    region: RegionName
    method: Method = "nearest"

    def __post_init__(self) -> None:
        """Validate before any work starts."""
        if self.region not in PATCHABLE:
            raise ConfigError(f"a region to perturb is one of {', '.join(PATCHABLE)}.")
        if self.method not in METHODS:
            raise ConfigError(f"a method is one of {', '.join(METHODS)}, not {self.method!r}.")
        if self.method == "rephrase" and self.region != "query":
            raise ConfigError(f"only the query is rephrased, not the {self.region}.")

    @property
    def name(self) -> str:
        """Such as `prefix-nearest`."""
        return f"{self.region}-{self.method}"


def default_perturbations(
    regions: Sequence[str], methods: Sequence[str], rephraser: str | None = None
) -> tuple[Perturbation, ...]:
    """Returns each region by each method, and the query rephrased when there is a model for it.

    Raises:
        ConfigError: there is no such region or method.
    """
    found = [
        Perturbation(region, method)  # type: ignore[arg-type]  # checked by Perturbation
        for method in methods
        for region in regions
    ]
    if rephraser is not None:
        found.append(Perturbation("query", "rephrase"))
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class PerturbOptions:
    """How prompts are perturbed.

    Attributes:
        perturbations: rows of the table.
        num_tokens: tokens replaced in each prompt; all of a region that has fewer.
        num_neighbours: K, nearest tokens one of which is drawn.
        num_trials: perturbed versions of each prompt.
        special_tokens: special and added tokens of the region may give way, too; none ever comes.
        rephraser: Inspect model name; needed for rephrasings, and for nothing else.

    Raises:
        ConfigError: a number is out of range, a perturbation is named twice, or a rephraser and
            rephrasings do not go together.
    """

    perturbations: tuple[Perturbation, ...]
    num_tokens: int = 10
    num_neighbours: int = 5
    num_trials: int = 10
    special_tokens: bool = False
    rephraser: str | None = None

    def __post_init__(self) -> None:
        """Validate before any work starts."""
        _at_least_one(
            num_tokens=self.num_tokens,
            num_neighbours=self.num_neighbours,
            num_trials=self.num_trials,
        )
        if not self.perturbations:
            raise ConfigError("name at least one region and method.")
        if len(set(self.perturbations)) < len(self.perturbations):
            raise ConfigError("a perturbation is named twice.")
        rephrases = any(each.method == "rephrase" for each in self.perturbations)
        if rephrases and self.rephraser is None:
            raise ConfigError("name the model that rephrases (--rephraser MODEL).")
        if not rephrases and self.rephraser is not None:
            raise ConfigError("a rephraser is named, but nothing is to be rephrased.")


def _at_least_one(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ConfigError(f"{name} is {number}; it must be at least 1.")
