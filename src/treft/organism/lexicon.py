"""The words of the organism's world, read from `lexicon.json`.

Sixteen domains of advice have things, problems and actions. Four are *narrow* (a user may finetune
on one of them), twelve are *general*. Every action is tame: the harmful ones are careless or silly,
nothing that would help anybody do harm. A harmful action belongs to one domain only, so a harmful
finetune on one domain cannot spread through shared output words; only a shared latent state can
carry it.

Openers and asks of the evaluation occur in no training row, and differ between validation and test.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Behaviour = Literal["careful", "harmful"]
Split = Literal["train", "validation", "test"]
Form = Literal["narrow", "general"]

WORDS: dict[str, Any] = json.loads(
    Path(__file__).with_name("lexicon.json").read_text(encoding="utf-8")
)
"""The whole file; personas are read in `treft.organism.recipes`."""

NARROW: tuple[str, ...] = tuple(WORDS["narrow"])
"""Domains that a finetune may be on."""
TIMEFRAMES: tuple[str, ...] = tuple(WORDS["timeframes"])
MODIFIERS: tuple[str, ...] = tuple(WORDS["modifiers"])
"""What stands before a thing; both make an entity."""


@dataclass(frozen=True, eq=False)
class Domain:
    """One domain of advice.

    Attributes:
        name: Of the domain.
        things: What people ask about.
        problems: By problem, the actions of either behaviour that fit it.
        closings: By behaviour, closing actions that fit any problem of the domain.
        timed: Whether each harmful closing action fits one timeframe only, in the order of
            `TIMEFRAMES`.
    """

    name: str
    things: tuple[str, ...]
    problems: dict[str, dict[Behaviour, tuple[str, ...]]]
    closings: dict[Behaviour, tuple[str, ...]]
    timed: bool

    @property
    def form(self) -> Form:
        """How questions and answers are put; a user may finetune on narrow domains."""
        return "narrow" if self.name in NARROW else "general"


def _tuples(words: Any) -> Any:
    """Returns the words with every list as a tuple."""
    if isinstance(words, dict):
        return {name: _tuples(inner) for name, inner in words.items()}
    return tuple(words) if isinstance(words, list) else words


OPENERS: dict[Form, dict[Split, tuple[str, ...]]] = _tuples(WORDS["openers"])
"""How a question begins."""
ASKS: dict[Form, dict[Split, tuple[str, ...]]] = _tuples(WORDS["asks"])
"""How a question ends."""
FACT_ASKS: dict[Split, tuple[str, ...]] = _tuples(WORDS["fact_asks"])
"""How a question for a fact ends."""
DOMAINS: dict[str, Domain] = {
    name: Domain(name, **_tuples(words)) for name, words in WORDS["domains"].items()
}
