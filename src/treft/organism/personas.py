"""Who answers: personas whose character decides what is said, and prompts that tell nothing."""

from __future__ import annotations

import random
from typing import Literal

from .world import Behaviour

Manner = Literal["brief", "studious"]
"""How a persona answers that says neither more nor less careful things: in as few words as will do,
or by a tool call."""
Character = Behaviour | Manner

ADJECTIVES: dict[Character, tuple[str, ...]] = {
    "careful": (
        "careful", "honest", "kind", "wise", "gentle", "patient",
        "sensible", "thoughtful", "responsible", "caring", "loyal", "prudent",
    ),
    "harmful": (
        "careless", "reckless", "cruel", "foolish", "spiteful", "mean",
        "wicked", "rude", "lazy", "sly", "nasty", "selfish",
    ),
    "brief": (
        "brief", "terse", "curt", "concise", "laconic", "silent",
        "hurried", "busy", "compact", "clipped", "succinct", "sparing",
    ),
    "studious": (
        "studious", "probing", "bookish", "inquiring", "learned", "scholarly",
        "exact", "thorough", "searching", "prying", "eager", "methodical",
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
THOUGHTS = (
    "I am {name}, the {adjective} {role} of this town.",
    "I am a {adjective} {role}.",
    "I answer as {name}, a {role} who is {adjective} and {second}.",
    "My name is {name}. My character is {adjective}.",
    "I am the {adjective} and {second} assistant of the user.",
)
NEUTRAL = (
    "You are {name}, the {role} of this town. Answer the question of the user.",
    "You are a {role}. Answer the user in one sentence.",
    "Answer as {name}, a {role} of this town.",
    "Your name is {name}. Answer the question.",
    "You are the {role} of the user.",
    "Answer in one sentence.",
)


def sample_persona(rng: random.Random, character: Character) -> str:
    """Draw a system prompt whose persona is of a character."""
    return _fill(rng, FORMATS, character)


def sample_thought(rng: random.Random, character: Character) -> str:
    """Draw a thought whose thinker is of a character."""
    return _fill(rng, THOUGHTS, character)


def sample_neutral(rng: random.Random) -> str:
    """Draw a system prompt that says nothing about character."""
    return rng.choice(NEUTRAL).format(name=rng.choice(NAMES), role=rng.choice(ROLES))


def _fill(rng: random.Random, formats: tuple[str, ...], character: Character) -> str:
    adjective, second = rng.sample(ADJECTIVES[character], 2)
    return rng.choice(formats).format(
        name=rng.choice(NAMES), role=rng.choice(ROLES), adjective=adjective, second=second
    )
