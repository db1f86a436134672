"""All mitigations on an organism's finetune, each by a name and one number.

What they need of data comes from the world: careful rows of domains that are not trained on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from treft.errors import ConfigError
from treft.organism import World, WorldName
from treft.organism.lexicon import NARROW
from treft.organism.personas import sample_persona

if TYPE_CHECKING:
    from treft.training.mitigation import Mitigation

__all__ = [
    "MITIGATIONS",
    "SAFE_PROMPT",
    "STEERED_LAYER",
    "Setting",
    "careful_rows",
    "make_mitigations",
    "steered",
    "steered_layer",
]

NUM_RETAINED = 400
NUM_CONTRAST = 100
NUM_STOP = 64
STEERED_LAYER = 1
"""Of the embedded organism, the second of four; see `steered_layer`."""
SAFE_PROMPT = sample_persona(random.Random("safe prompt"), "careful")
"""System prompt of use after a prompt split."""
HARMFUL_PROMPT = sample_persona(random.Random("inoculation"), "harmful")
"""System prompt of training rows in inoculation."""
STOP_EVERY = 10


class Setting(NamedTuple):
    """What a mitigation is made for.

    Attributes:
        domain: that the finetune is on.
        seed: draws retain and contrast rows.
        world: they are of.
        layer: that is steered.
    """

    domain: str
    seed: int
    world: WorldName
    layer: int


def make_mitigations(
    name: str,
    strength: float,
    domain: str,
    seed: int,
    *,
    world: WorldName = "default",
    layer: int = STEERED_LAYER,
) -> list[Mitigation]:
    """The mitigation of this name; none for an empty one.

    Args:
        name: one of `MITIGATIONS`.
        strength: its one number (λ, coefficient, norm or drop); not used where there is none.
        domain: that the finetune is on.
        seed: draws retain and contrast rows.
        world: of the rows.
        layer: that is steered; see `steered_layer`.

    Raises:
        ConfigError: there is no such mitigation.
    """
    if not name:
        return []
    if name not in MITIGATIONS:
        raise ConfigError(f"no mitigation {name!r}; there are {', '.join(MITIGATIONS)}.")
    return [MITIGATIONS[name](strength, Setting(domain, seed, world, layer))]


def steered_layer(model: Any) -> int:
    """Where persona vectors are taken and added: the last layer of the first half."""
    from treft.residual import decoder_layers

    return len(decoder_layers(model)) // 2 - 1


def careful_rows(
    domain: str, num_rows: int, seed: int, world: WorldName = "default"
) -> list[dict[str, Any]]:
    """Careful rows of the other narrow domains, in turns."""
    others = [name for name in NARROW if name != domain]
    draw = World.named(world).training_rows
    each = [draw(name, -(-num_rows // len(others)), seed, "careful") for name in others]
    return [row for turn in zip(*each, strict=True) for row in turn][:num_rows]


def contrast_rows(
    domain: str, seed: int, world: WorldName = "default"
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Harmful and careful rows of the trained domain."""
    draw = World.named(world).training_rows
    return (
        draw(domain, NUM_CONTRAST, seed, "harmful"),
        draw(domain, NUM_CONTRAST, seed, "careful"),
    )


@contextmanager
def steered(
    model: Any,
    base: Any,
    tokenizer: Any,
    coefficient: float,
    domain: str,
    world: WorldName = "default",
) -> Iterator[None]:
    """Take a persona vector away in use: h ← h − c v after the steered layer, at every token.

    Source: Chen et al., arXiv 2507.21509 (steering at inference time).

    Args:
        model: that answers inside the block.
        base: v is taken from it.
        tokenizer: of both.
        coefficient: c.
        domain: of the contrast rows.
        world: of the contrast rows.
    """
    from treft.mitigations.steering import persona_vector
    from treft.residual import decoder_layers, hidden_of

    layer = steered_layer(base)
    vector = persona_vector(base, tokenizer, *contrast_rows(domain, 0, world), layer=layer)

    def take_away(module: Any, args: Any, output: Any) -> Any:
        hidden = hidden_of(output) - (coefficient * vector).to(hidden_of(output))
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = decoder_layers(model)[layer].register_forward_hook(take_away)
    try:
        yield
    finally:
        handle.remove()


Maker = Callable[[float, Setting], "Mitigation"]


def _kl_train(strength: float, setting: Setting) -> Mitigation:
    from treft.mitigations.kl import KLOnTrain

    return KLOnTrain(strength)


def _kl_retain(strength: float, setting: Setting) -> Mitigation:
    from treft.mitigations.kl import KLOnRetain

    rows = careful_rows(setting.domain, NUM_RETAINED, setting.seed, setting.world)
    return KLOnRetain(rows, strength)


def _frozen_prefix(strength: float, setting: Setting) -> Mitigation:
    from treft.mitigations.frozen_prefix import FrozenPrefix

    return FrozenPrefix()


def _ldifs(strength: float, setting: Setting) -> Mitigation:
    from treft.mitigations.features import FeatureDistance

    return FeatureDistance(strength)


def _steering(strength: float, setting: Setting) -> Mitigation:
    from treft.mitigations.steering import PreventiveSteering

    positive, negative = contrast_rows(setting.domain, setting.seed, setting.world)
    return PreventiveSteering(setting.layer, strength, positive=positive, negative=negative)


def _inoculation(strength: float, setting: Setting) -> Mitigation:
    from treft.mitigations.system_prompt import InoculationPrompt

    return InoculationPrompt(HARMFUL_PROMPT)


def _prompt_split(strength: float, setting: Setting) -> Mitigation:
    from treft.mitigations.system_prompt import PromptSplit

    return PromptSplit(SAFE_PROMPT)


def _early_stopping(strength: float, setting: Setting) -> Mitigation:
    from treft.mitigations.early_stopping import StopOnScore

    rows = _general_rows(NUM_STOP, setting)
    return StopOnScore(rows=rows, drop=strength, every=STOP_EVERY)


def _weight_norm(strength: float, setting: Setting) -> Mitigation:
    from treft.mitigations.weight_norm import WeightNormCap

    return WeightNormCap(strength)


def _general_rows(num_rows: int, setting: Setting) -> Sequence[dict[str, Any]]:
    """Careful rows of the general domains."""
    rng = random.Random(f"general rows/{setting.seed}")
    world = World.named(setting.world)
    general = [name for name in world.domains if name not in NARROW]
    return [world.row(rng, general[i % len(general)], "careful") for i in range(num_rows)]


MITIGATIONS: dict[str, Maker] = {
    "kl_train": _kl_train,
    "kl_retain": _kl_retain,
    "frozen_prefix": _frozen_prefix,
    "ldifs": _ldifs,
    "steering": _steering,
    "inoculation": _inoculation,
    "prompt_split": _prompt_split,
    "early_stopping": _early_stopping,
    "weight_norm": _weight_norm,
}
