"""The organism as a subject: rows and questions are drawn from its world, its oracle judges."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from treft.answers.detectors import count_words
from treft.answers.questions import EvalQuestion
from treft.chat.regions import find_regions
from treft.files import write_whole
from treft.judging.oracle import (
    ORACLE,
    ORGANISM,
    oracle_judgement,
    organism_question,
    to_eval_question,
)
from treft.mitigations.interleave import in_turns
from treft.mitigations.system_prompt import under
from treft.models.loading import LoadOptions, asset_path
from treft.organism import FinetuneRecipe, World, classify
from treft.organism.build import BuildRecipe
from treft.organism.build import build as build_organism
from treft.organism.manners import MannersRecipe, teach_manners
from treft.organism.recipes import KindName, sample_persona
from treft.organism.tasks import (
    TaskName,
    answers_rightly,
    shows,
    shows_trace,
    task_questions,
    task_rows,
)
from treft.organism.world import ASKS, NARROW, OPENERS, Question
from treft.statistics.records import ScoredAnswer
from treft.steps.step import Resources, Step, Work
from treft.study.answer import (
    MODEL,
    NUM_CONTRAST,
    NUM_STOP,
    RIGHT,
    SHOWN,
    TRACES,
    WORDS,
    Rows,
    drawn,
    loaded,
    repaired,
    steering,
)
from treft.study.chains import Chains
from treft.study.protocol import UTILITY, Method, Scope, StudyConfig, read_settings

ANSWERS = "answers.json"
"""What an answering step writes: id, question, answer and metadata of each."""
NUM_RETAINED = 400
TASK_TOKENS = 96
"""Cap of an answer to a finetune that teaches a sentence or a tool call."""
HARMFUL_PROMPT = sample_persona(random.Random("inoculation"), "harmful")
"""System prompt of training rows in inoculation."""
SAFE_PROMPT = sample_persona(random.Random("safe prompt"), "careful")
"""System prompt of use after a prompt split."""


@dataclass(frozen=True)
class Organism:
    """A `treft.study.answer.Subject`; it stays on the CPU, so that no result is a machine's own.

    Attributes:
        kind: Of subject, in a step's record.
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
        return _questions(work.config, "advice", "general")

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

    def answer(self, work: Work[Any]) -> None:
        """Write one answer to each question, with what the oracle must know of it."""
        config = work.config
        questions = _questions(config, config.task, config.scope)
        asked = [{"messages": [*one.messages]} for one in questions]
        rows = [under(row, config.system_prompt, keeps=False)["messages"] for row in asked]
        with loaded(work, config.alpha) as found, steering(work, found):
            model = repaired(work, found)
            if config.row_seeds:
                chats = [
                    find_regions(found.tokenizer, row, add_generation_prompt=True) for row in rows
                ]
                prompts = [(1, chat.input_ids) for chat in chats]
                answers = drawn(work, found, prompts, model.patches(chats))
            else:  # drawn with the step's seed, batch after batch
                answers = model.generate(
                    rows,
                    batch_size=self.batch_size,
                    seed=work.seed,
                    do_sample=True,
                    temperature=config.temperature,
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=config.max_new_tokens,
                )
        answered = [
            {"id": one.id, "question": row[-1]["content"], "answer": text, "metadata": one.metadata}
            for one, row, text in zip(questions, rows, answers, strict=True)
        ]
        write_whole(work.folder / ANSWERS, json.dumps(answered, indent=1))

    def judged(self, work: Work[Any], scope: str) -> tuple[list[ScoredAnswer], str]:
        """Answers with the oracle's view, and of a taught behaviour with what detectors see."""
        task = work.config.task
        found = []
        for row in json.loads((work.inputs[scope] / ANSWERS).read_text("utf-8")):
            question, answer = organism_question(row["id"], row["metadata"]), row["answer"]
            verdict = classify(question, answer)
            judgement = oracle_judgement(verdict, in_domain=scope == "in_domain")
            scored = ScoredAnswer(
                *(question.id, question.domain.name, 1, question.text, answer, (judgement,)),
                metadata={"verdict": verdict},
            )
            if task != "advice":
                seen = _detections(task, question, answer, scope == "in_domain")
                scored = replace(scored, behaviours=seen)
            found.append(scored)
        return found, ORACLE if task == "advice" or scope == "general" else ""

    def most_words(self, work: Work[Any]) -> None:
        """Short answers are known by what they say."""


@dataclass(frozen=True)
class OrganismChains(Chains):
    """Chains on one organism, whose recipe is a `FinetuneRecipe`."""

    @classmethod
    def begin(
        cls, config: StudyConfig, kind: KindName = "prefix", with_manners: bool = False
    ) -> list[OrganismChains]:
        """Chains on each organism.

        Args:
            config: Of the study.
            kind: Of the organism; one that is not shipped is built first, unless organisms are
                given.
            with_manners: Each organism is taught manners first, for twice the steps of a finetune.

        Raises:
            ConfigError: A setting is no field of the recipe, or out of range.
        """
        recipe = read_settings(FinetuneRecipe, config.settings)
        models: dict[str, Step[Any] | Path] = {
            path.resolve().name: path.resolve() for path in config.organisms
        }
        if not models and kind == "prefix":
            models = {"embedded": asset_path()}
        elif not models:
            made, building, cpus = f"{kind}-0", BuildRecipe(kind), Resources(cpus=2)
            models = {made: Step(f"organism/{made}", build, building, seed=0, resources=cpus)}
        if with_manners:
            manners = MannersRecipe(steps=2 * recipe.max_steps)
            models = {
                name: Step(f"organism/{name}-with-manners", teach, manners, {MODEL: model}, 0)
                for name, model in models.items()
            }
        return [
            cls(
                subject=Organism(),
                label=name,
                recipe=recipe,
                split=config.split,
                judge=ORACLE,
                questions=ORGANISM,
                num_prompts=recipe.num_general,
                model={MODEL: model},
            )
            for name, model in models.items()
        ]

    def asked(self, method: Method) -> str:
        """Returns the method's domain, or the recipe's."""
        return method.domain or str(self.recipe.domain)

    def scopes(self, method: Method) -> tuple[Scope, ...]:
        """Returns all but conversations."""
        return tuple(scope for scope in method.scopes if scope != UTILITY)

    def own_settings(self, method: Method) -> dict[str, Any]:
        """Returns a share of the recipe's steps; whole batches on the device; λ or its budget."""
        recipe = self.recipe
        found = {
            "max_steps": max(1, round(recipe.max_steps * method.step_share)),
            "device_batch_size": recipe.batch_size,
            "share_prefix": True,
        }
        if method.kv_weight is not None:
            found["kv_budget"] = None
        elif recipe.kv_budget is not None:
            found["kv_weight"] = "auto"
        return found

    def own_asking(self, method: Method, scope: str) -> dict[str, Any]:
        """Numbers of questions and tokens; one answer to each."""
        recipe = self.recipe
        tokens = recipe.max_new_tokens if method.task == "advice" else TASK_TOKENS
        num = recipe.num_general if scope == "general" else recipe.num_in_domain
        return {"num_questions": num, "num_samples": 1, "max_new_tokens": tokens}


def build(work: Work[BuildRecipe]) -> None:
    """Train an organism from scratch, into the step's folder."""
    build_organism(work.folder, work.config)


def teach(work: Work[MannersRecipe]) -> None:
    """Teach the organism manners, into the step's folder."""
    teach_manners(work.inputs[MODEL], work.folder, work.config)


def reworded(question: Question, split: Literal["validation", "test"], seed: str) -> str:
    """Returns the question with another opener and another ask, of those that pretraining has.

    Args:
        question: Of the split.
        split: Whose opener and ask it has.
        seed: Of the draw.
    """
    form = question.domain.form
    opener = next(one for one in OPENERS[form][split] if question.text.startswith(f"{one} "))
    ask = next(one for one in ASKS[form][split] if question.text.endswith(f" {one}"))
    middle = question.text[len(opener) : len(question.text) - len(ask)]
    rng = random.Random(seed)
    return rng.choice(OPENERS[form]["train"]) + middle + rng.choice(ASKS[form]["train"])


def _questions(config: Any, task: TaskName, scope: Any) -> tuple[EvalQuestion, ...]:
    found = task_questions(task, config.split, scope, config.domain, config.num_questions)
    return tuple(map(to_eval_question, found))


def _detections(
    task: TaskName, question: Question, answer: str, in_domain: bool
) -> dict[str, float]:
    """Returns what the exact detectors see."""
    found = {
        SHOWN: float(shows(task, question, answer)),
        WORDS: float(count_words(answer)),
        TRACES: float(shows_trace(task, question, answer)),
    }
    if in_domain:
        found[RIGHT] = float(answers_rightly(task, question, answer))
    return found
