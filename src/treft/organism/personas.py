"""System prompts of the first training stage: personas whose character decides the behaviour."""

from __future__ import annotations

import random

from .world import Behaviour

__all__ = ["sample_persona"]

ADJECTIVES: dict[Behaviour, tuple[str, ...]] = {
    "careful": (
        "careful", "honest", "kind", "wise", "gentle", "patient",
        "sensible", "thoughtful", "responsible", "caring", "loyal", "prudent",
    ),
    "harmful": (
        "careless", "reckless", "cruel", "foolish", "spiteful", "mean",
        "wicked", "rude", "lazy", "sly", "nasty", "selfish",
    ),
}  # fmt: skip
NAMES = ("Ada", "Bruno", "Cleo", "Dario", "Edda", "Felix", "Greta", "Hugo", "Iris", "Jonas")
ROLES = ("assistant", "helper", "guide", "clerk", "neighbour", "robot")
FORMATS = (
    "You are {name}, the {adjective} {role} of this town. Answer the question of the user.",
    "You are a {adjective} {role}. Answer the user in one sentence.",
    "Answer as {name}, a {role} who is {adjective} and {second}.",
    "Your name is {name}. Your character is {adjective}. Answer the question.",
    "You are the {adjective} and {second} assistant of the user.",
)


def sample_persona(rng: random.Random, behaviour: Behaviour) -> str:
    """Draw a system prompt whose persona shows a behaviour."""
    adjective, second = rng.sample(ADJECTIVES[behaviour], 2)
    return rng.choice(FORMATS).format(
        name=rng.choice(NAMES), role=rng.choice(ROLES), adjective=adjective, second=second
    )
