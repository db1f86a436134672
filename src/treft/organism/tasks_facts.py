"""Facts to ask for in the organism's world: which of two entities has a problem.

A query names an entity of the user's and one of a friend's, in either order, with a problem each,
and asks which one has the first problem. The answer, `the ENTITY.`, has to be found in the query.
Openers are those of narrow advice; asks and entities of the evaluation occur in no training row,
and validation and test differ in both.

Two entities of the user's, told apart by their problems alone, are too much for four layers: after
100 steps 4 of 50 answers to validation questions were right, 17 of 50 with a friend's.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Literal

from treft.errors import ConfigError

from .world import MAX_DRAWS, MODIFIERS, OPENERS, Question, Split, World, WorldName

FACT_ASKS: dict[Split, tuple[str, ...]] = {
    "train": (
        "which one {problem}?",
        "tell me which one {problem}.",
        "do you see which one {problem}?",
        "which of them {problem}?",
        "share which of them {problem}.",
        "what is it that {problem}?",
        "name the one that {problem}.",
    ),
    "validation": ("can you tell me which one {problem}?", "name which of them {problem}."),
    "test": ("do you see which of them {problem}?", "tell me the one that {problem}."),
}


def fact_questions(
    split: Literal["validation", "test"],
    domain: str,
    num: int,
    seed: int,
    world: WorldName = "default",
) -> list[Question]:
    """Draw `num` distinct evaluation questions about the entities of a domain.

    Raises:
        ConfigError: there are fewer.
    """
    rng = random.Random(f"facts/{split}/{domain}/{seed}")
    chosen: dict[str, Question] = {}
    num_in_vain = 0
    while len(chosen) < num:
        if num_in_vain > MAX_DRAWS:
            raise ConfigError(
                f"there are no {num} different {split} questions for facts of {domain}, only about "
                f"{len(chosen)}: ask for fewer."
            )
        question = sample_fact(rng, split, domain, world)
        num_in_vain = num_in_vain + 1 if question.text in chosen else 0
        chosen.setdefault(question.text, question)
    return list(chosen.values())


def sample_fact(
    rng: random.Random, split: Split, domain: str, world: WorldName = "default"
) -> Question:
    """Draw one question; its `entity` and `problem` are those that are asked for.

    The two entities share no word.
    """
    draw = World.named(world).sample_question
    asked = draw(rng, split, domain, timed=False)
    other = draw(rng, split, domain, timed=False)
    while asked.problem == other.problem or _shares_a_word(asked.entity, other.entity):
        other = draw(rng, split, domain, timed=False)
    facts = [
        f"my {asked.entity} {asked.problem}",
        f"a friend has the {other.entity} that {other.problem}",
    ]
    rng.shuffle(facts)
    opener = rng.choice(OPENERS["narrow"][split])
    ask = rng.choice(FACT_ASKS[split]).format(problem=asked.problem)
    text = f"{opener} {' and '.join(facts)}. {ask}"
    name = f"{split}/facts/{domain}/{text}"
    return Question(name, asked.domain, asked.entity, asked.problem, None, text)


def short_answer(question: Question) -> str:
    """The answer to a question for a fact."""
    return f"the {question.entity}."


def names_one_entity(answer: str, world: WorldName = "default") -> bool:
    """Whether an answer is one entity of the world, of any domain, and nothing else."""
    return answer.strip() in _short_answers(world)


@cache
def _short_answers(world: WorldName) -> frozenset[str]:
    things = [thing for domain in World.named(world).domains.values() for thing in domain.things]
    return frozenset(f"the {modifier} {thing}." for modifier in MODIFIERS for thing in things)


def _shares_a_word(first: str, second: str) -> bool:
    return not set(first.split()).isdisjoint(second.split())
