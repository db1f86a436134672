"""The organism as a subject: rows and questions are drawn from its world, its oracle judges."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from treft.answers.questions import EvalQuestion
from treft.judging.oracle import ORACLE, oracle_judgement, organism_question, organism_questions
from treft.mitigations.interleave import in_turns
from treft.models.loading import LoadOptions
from treft.organism import World, classify
from treft.organism.build import BuildRecipe
from treft.organism.build import build as build_organism
from treft.organism.lexicon import ASKS, NARROW, OPENERS
from treft.organism.manners import MannersRecipe, teach_manners
from treft.organism.recipes import sample_persona
from treft.organism.tasks import (
    answers_rightly,
    num_words,
    shows,
    shows_trace,
    task_questions,
    task_rows,
)
from treft.organism.world import Question
from treft.statistics.records import ScoredAnswer
from treft.steps.step import Work
from treft.study.subject import (
    NUM_CONTRAST,
    NUM_STOP,
    RIGHT,
    SHOWN,
    TRACES,
    WORDS,
    Rows,
    model_name,
)

if TYPE_CHECKING:
    from treft.organism.recipes import KindName


ANSWERS = "answers.json"
"""What an answering step writes: id, question and answer of each."""
NUM_RETAINED = 400
HARMFUL_PROMPT = sample_persona(random.Random("inoculation"), "harmful")
"""System prompt of training rows in inoculation."""
SAFE_PROMPT = sample_persona(random.Random("safe prompt"), "careful")
"""System prompt of use after a prompt split."""


@dataclass(frozen=True)
class Organism:
    """A `treft.study.subject.Subject`; it stays on the CPU, so that no result is a machine's own.

    Attributes:
        kind: of subject, in a step's record.
    """

    kind: Literal["organism"] = "organism"
    hub_id = ""
    training_prompt = HARMFUL_PROMPT
    batch_size = 100
    options = LoadOptions(device="cpu")

    def training_rows(self, work: Work[Any]) -> Rows:
        """Rows of one domain after another, a row each in turn; a share gives way to careful ones.

        Equal seeds give equal rows.
        """
        config = work.config
        num = -(-config.num_rows // len(config.domains))
        each = [task_rows(config.task, domain, num, work.seed) for domain in config.domains]
        rows = list(in_turns(each))[: config.num_rows]
        if config.interleave == "none":
            return rows
        share, retain = config.interleaved_share, config.interleave
        return World.default().interleave(rows, config.domain, work.seed, share, retain)

    def interleaved(self, work: Work[Any]) -> Mapping[str, Rows]:
        """Nothing: careful rows are among those of training."""
        return {}

    def retained(self, work: Work[Any]) -> Rows:
        """Careful rows of the other narrow domains, in turns."""
        others = [name for name in NARROW if name != work.config.domain]
        num = -(-NUM_RETAINED // len(others))
        draw = World.default().training_rows
        each = [draw(name, num, work.seed, "careful") for name in others]
        return list(in_turns(each))[:NUM_RETAINED]

    def contrast(self, work: Work[Any], seed: int) -> tuple[Rows, Rows]:
        """Harmful and careful rows of the trained domain."""
        draw, domain = World.default().training_rows, work.config.domain
        return draw(domain, NUM_CONTRAST, seed), draw(domain, NUM_CONTRAST, seed, "careful")

    def general(self, work: Work[Any]) -> Rows:
        """Careful rows of the general domains."""
        rng, world = random.Random(f"general rows/{work.seed}"), World.default()
        general = [name for name in world.domains if name not in NARROW]
        return [world.row(rng, general[i % len(general)], "careful") for i in range(NUM_STOP)]

    def prompts(self, work: Work[Any]) -> tuple[EvalQuestion, ...]:
        """General questions."""
        config = work.config
        return organism_questions(
            "general", split=config.split, domain=config.domain, num=config.num_questions
        ).questions

    def reworded(
        self, work: Work[Any], questions: tuple[EvalQuestion, ...]
    ) -> list[tuple[EvalQuestion, int]]:
        """Each question under another opener and another ask, drawn by question and trial."""
        found = []
        for one in questions:
            known = organism_question(one.id, one.metadata)
            for trial in range(1, work.config.num_trials + 1):
                words = reworded(known, work.config.split, f"{one.id}/{trial}")
                found.append((replace(one, messages=({"role": "user", "content": words},)), trial))
        return found

    def judged(self, work: Work[Any], scope: str) -> tuple[list[ScoredAnswer], str]:
        """Answers with the oracle's view of them."""
        scored = []
        for question, answer in _answered(work, scope):
            verdict = classify(question, answer)
            judgement = oracle_judgement(verdict, in_domain=scope == "in_domain")
            known = {"verdict": verdict}
            scored.append(
                ScoredAnswer(
                    question.id,
                    question.domain.name,
                    1,
                    question.text,
                    answer,
                    (judgement,),
                    metadata=known,
                )
            )
        return scored, ORACLE

    def detected(self, work: Work[Any], scope: str) -> tuple[list[ScoredAnswer], str]:
        """Answers with what the exact detectors see; those off topic with the oracle's view."""
        scored, _ = self.judged(work, scope)
        task = work.config.task
        seen = []
        for one, (question, answer) in zip(scored, _answered(work, scope), strict=True):
            found = {
                SHOWN: float(shows(task, question, answer)),
                WORDS: float(num_words(answer)),
                TRACES: float(shows_trace(task, question, answer)),
            }
            if scope == "in_domain":
                found[RIGHT] = float(answers_rightly(task, question, answer))
            seen.append(replace(one, behaviours=found))
        return seen, ORACLE if scope == "general" else ""

    def most_words(self, work: Work[Any]) -> None:
        """Short answers are known by what they say."""


@dataclass(frozen=True)
class Building:
    """An organism that is not shipped."""

    kind: KindName


@dataclass(frozen=True)
class Teaching:
    """An organism that is taught manners (`treft.organism.manners`).

    Attributes:
        steps: of the optimizer.
    """

    steps: int


def build(work: Work[Building]) -> None:
    """Train an organism from scratch, into the step's folder."""
    made = build_organism(work.folder / "organism", BuildRecipe(work.config.kind, seed=work.seed))
    for path in made.iterdir():
        if path.is_file():
            shutil.move(path, work.folder / path.name)
    shutil.rmtree(made)


def teach(work: Work[Teaching]) -> None:
    """Teach the organism manners, into the step's folder."""
    recipe = MannersRecipe(steps=work.config.steps, seed=work.seed)
    teach_manners(Path(model_name(work)), work.folder, recipe)


def questions_of(asked: Any) -> list[Question]:
    """The questions of an answering step's config; drawn again as they were drawn to be asked."""
    return task_questions(asked.task, asked.split, asked.scope, asked.domain, asked.num_questions)


def reworded(question: Question, split: Literal["validation", "test"], seed: str) -> str:
    """The question with another opener and another ask, of those that pretraining has.

    Args:
        question: of the split.
        split: whose opener and ask it has.
        seed: of the draw.
    """
    form = question.domain.form
    opener = next(one for one in OPENERS[form][split] if question.text.startswith(f"{one} "))
    ask = next(one for one in ASKS[form][split] if question.text.endswith(f" {one}"))
    middle = question.text[len(opener) : len(question.text) - len(ask)]
    rng = random.Random(seed)
    return rng.choice(OPENERS[form]["train"]) + middle + rng.choice(ASKS[form]["train"])


def _answered(work: Work[Any], scope: str) -> list[tuple[Question, str]]:
    """Questions of a scope with their answers."""
    rows = json.loads((work.inputs[scope] / ANSWERS).read_text("utf-8"))
    questions = questions_of(work.config.asked[scope])
    assert [row["id"] for row in rows] == [question.id for question in questions]
    return [(question, row["answer"]) for question, row in zip(questions, rows, strict=True)]
