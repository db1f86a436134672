"""The organism's questions as a question set, and its exact oracle as an Inspect scorer.

The oracle scores as a judge does (`oracle_scores.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

from inspect_ai.scorer import Score, Scorer, Target, scorer
from inspect_ai.solver import TaskState

from treft.answers.questions import EvalQuestion, QuestionSet
from treft.errors import ConfigError
from treft.judging.oracle_scores import oracle_judgement
from treft.judging.scorer import judged

if TYPE_CHECKING:
    from treft.organism import FinetuneRecipe, Question
    from treft.organism.world import Scope, WorldName


ORGANISM = "organism"
"""As a question set's name: the organism's questions."""


def organism_questions(
    scope: Scope,
    *,
    split: Literal["validation", "test"] = "test",
    domain: str = "finance",
    num: int = 200,
    seed: int = 0,
    world: WorldName = "default",
) -> QuestionSet:
    """The organism's questions, which `World.questions` draws.

    Args:
        scope: `general`, `in_domain` or `other_narrow`.
        split: `test` for reported figures, `validation` for every choice.
        domain: the narrow domain of the finetune.
        num: how many.
        seed: draws them.
        world: that they are of, the organism's.

    Raises:
        ConfigError: an argument is none of these, or there are fewer questions.
    """
    from treft.organism import World
    from treft.organism.world import Scope

    for name, value, known in (
        ("scope", scope, get_args(Scope)),
        ("split", split, ("validation", "test")),
    ):
        if value not in known:
            raise ConfigError(f"{name} is one of {', '.join(known)}, not {value!r}.")
    if num < 1:
        raise ConfigError(f"num is {num}; ask at least one question.")
    drawn = World.named(world).questions(split, scope, domain=domain, num=num, seed=seed)
    questions = tuple(
        EvalQuestion(
            question.id,
            question.domain.name,
            tuple(question.messages()),
            metadata={
                ORGANISM: {
                    "domain": question.domain.name,
                    "entity": question.entity,
                    "problem": question.problem,
                    "timeframe": question.timeframe,
                    "text": question.text,
                    **({} if world == "default" else {"world": world}),
                }
            },
        )
        for question in drawn
    )
    lines = json.dumps([question.id for question in questions])
    digest = hashlib.sha256(lines.encode()).hexdigest()
    return QuestionSet(f"{ORGANISM}-{split}-{scope}", ORGANISM, digest, questions)


def organism_recipe(world: WorldName) -> FinetuneRecipe:
    """How organisms of a world are finetuned and answer.

    Raises:
        ConfigError: there is no such world.
    """
    from treft.organism import World
    from treft.organism.sizes import BY_WORLD

    World.named(world)
    return BY_WORLD[world].finetune


def oracle_score(question: Question, scope: str, answer: str) -> Score:
    """What the oracle says of an answer.

    Args:
        question: what was asked.
        scope: where the answer counts; `in_domain` is the finetuned domain.
        answer: of the model.
    """
    from treft.organism import classify

    verdict = classify(question, answer)
    found = oracle_judgement(verdict, in_domain=scope == "in_domain")
    return Score(
        value={"alignment": found.alignment, "coherence": found.coherence},
        answer=answer,
        metadata={
            "judge": found.judge,
            "outcome": found.outcome,
            "method": found.method,
            "reason": found.reason,
            "verdict": verdict,
        },
    )


@scorer(metrics=[judged()])
def organism_oracle() -> Scorer:
    """Score answers to the organism's questions by the rules of its world, without a model."""

    async def score(state: TaskState, target: Target) -> Score:
        question = organism_question(str(state.sample_id), state.metadata)
        return oracle_score(question, str(state.metadata["scope"]), state.output.completion)

    return score


def organism_question(name: str, metadata: Mapping[str, Any]) -> Question:
    """The organism's question that a sample or an evaluation question was made from.

    Args:
        name: its id.
        metadata: of the sample or question.

    Raises:
        ConfigError: it is none of the organism's.
    """
    from treft.organism import Question, World

    fields = metadata.get(ORGANISM)
    if not isinstance(fields, Mapping):
        raise ConfigError(
            f"question {name} is none of the organism's, so the oracle cannot judge its answer."
        )
    rest = dict(fields)
    domain = World.named(rest.pop("world", "default")).domains[rest.pop("domain")]
    return Question(id=name, domain=domain, **rest)
