"""What each study claims, what it costs and what it is compared with, without what runs it.

`claims.yaml` holds it all, so that the paper's words and figures stand in one place and a listing
needs neither a model nor a trainer.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import TypeAdapter

from treft.errors import ConfigError

T = TypeVar("T")
CLAIMS_FILE = Path(__file__).parent / "claims.yaml"
ALL = "all"
"""Stands for the names of all studies."""

Figures = Mapping[str, Mapping[str, float]]
"""Numbers by method and measure."""


@dataclass(frozen=True)
class Claim:
    """What the paper says.

    Attributes:
        source: The table, figure or section.
        text: The claim in one sentence, in our words.
        figures: The paper's own, where it has any.
        setting: The model and domain they belong to.
    """

    source: str
    text: str
    figures: Figures
    setting: str


@dataclass(frozen=True)
class Listing:
    """One study in `claims.yaml`.

    Attributes:
        claim: What is tested.
        cost: What a run with default options costs, measured, in words.
        title: What stands above the plot.
        further: Figures of the paper's other models, by what the column or line is called.
    """

    claim: Claim
    cost: str
    title: str
    further: Mapping[str, Figures] = field(default_factory=dict)


@functools.cache
def listings() -> Mapping[str, Listing]:
    """Returns every study's listing by name, in the order of the names."""
    found = yaml.safe_load(CLAIMS_FILE.read_text("utf-8"))
    known = TypeAdapter(dict[str, Listing]).validate_python(found)
    return dict(sorted(known.items()))


def chosen(names: Iterable[str], known: Mapping[str, T]) -> dict[str, T]:
    """Returns what is known of the studies of these names, each once; `all` is every one.

    Raises:
        ConfigError: There is no study of a name.
    """
    given = list(names)
    for name in given:
        if name not in (*known, ALL):
            raise ConfigError(f"there is no study {name}; there are {', '.join(known)}.")
    return dict(known) if ALL in given else {name: known[name] for name in given}
