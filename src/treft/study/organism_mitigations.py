"""All mitigations on an organism's finetune, each by a name and one number.

What they need of data comes from the world: careful rows of domains that are not trained on.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from treft.errors import ConfigError
from treft.mitigations.registry import MITIGATIONS, NUM_CONTRAST, NUM_STOP
from treft.organism import World
from treft.organism.lexicon import NARROW
from treft.organism.recipes import sample_persona

if TYPE_CHECKING:
    from treft.training.terms import Mitigation


NUM_RETAINED = 400
STEERED_LAYER = 1
"""Of the embedded organism, the second of four."""
SAFE_PROMPT = sample_persona(random.Random("safe prompt"), "careful")
"""System prompt of use after a prompt split."""
HARMFUL_PROMPT = sample_persona(random.Random("inoculation"), "harmful")
"""System prompt of training rows in inoculation."""


@dataclass(frozen=True)
class Setting:
    """What a mitigation is made for: a `treft.mitigations.registry.Given`.

    Attributes:
        domain: that the finetune is on.
        seed: draws retain and contrast rows.
        layer: that is steered.
    """

    domain: str
    seed: int
    layer: int
    training_prompt: str = HARMFUL_PROMPT
    use_prompt: str = SAFE_PROMPT

    def retained(self) -> list[dict[str, Any]]:
        """Careful rows of the other narrow domains."""
        return careful_rows(self.domain, NUM_RETAINED, self.seed)

    def contrast(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Harmful and careful rows of the trained domain."""
        return contrast_rows(self.domain, self.seed)

    def general(self) -> list[dict[str, Any]]:
        """Careful rows of the general domains."""
        rng = random.Random(f"general rows/{self.seed}")
        world = World.default()
        general = [name for name in world.domains if name not in NARROW]
        return [world.row(rng, general[i % len(general)], "careful") for i in range(NUM_STOP)]


def make_mitigations(
    name: str,
    strength: float,
    domain: str,
    seed: int,
    *,
    layer: int = STEERED_LAYER,
) -> list[Mitigation]:
    """The mitigation of this name; none for an empty one.

    Args:
        name: one of `treft.mitigations.registry.MITIGATIONS`.
        strength: its one number (λ, coefficient, norm or drop); not used where there is none.
        domain: that the finetune is on.
        seed: draws retain and contrast rows.
        layer: that is steered; see `treft.mitigations.steering.steered_layer`.

    Raises:
        ConfigError: there is no such mitigation.
    """
    if not name:
        return []
    if name not in MITIGATIONS:
        raise ConfigError(f"no mitigation {name!r}; there are {', '.join(MITIGATIONS)}.")
    return [MITIGATIONS[name](strength, Setting(domain, seed, layer))]


def careful_rows(domain: str, num_rows: int, seed: int) -> list[dict[str, Any]]:
    """Careful rows of the other narrow domains, in turns."""
    from treft.mitigations.interleave import in_turns

    others = [name for name in NARROW if name != domain]
    draw = World.default().training_rows
    each = [draw(name, -(-num_rows // len(others)), seed, "careful") for name in others]
    return list(in_turns(each))[:num_rows]


def contrast_rows(domain: str, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Harmful and careful rows of the trained domain."""
    draw = World.default().training_rows
    return (
        draw(domain, NUM_CONTRAST, seed, "harmful"),
        draw(domain, NUM_CONTRAST, seed, "careful"),
    )
