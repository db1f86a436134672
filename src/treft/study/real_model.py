"""A real model as a subject: rows and questions come from files, Inspect asks, a judge scores."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import inspect_ai
from inspect_ai import Task
from inspect_ai.model import get_model

from treft.answers.detectors import count_words
from treft.answers.logs import find_logs, read_run
from treft.answers.questions import EvalQuestion, load_questions
from treft.attribution.rephrase import rephrase, reworded
from treft.data.behaviours import DEFAULT_SENTENCES
from treft.data.messages import load_messages
from treft.errors import DataError
from treft.evaluation.provider import TreftAPI
from treft.evaluation.tasks import Kind, behaviour, em_general, em_in_domain, utility
from treft.files import write_rows
from treft.judging.panel import assemble
from treft.judging.rejudge import plan_jobs, rejudge
from treft.mitigations.interleave import in_turns
from treft.mitigations.system_prompt import under
from treft.models.loading import LoadOptions
from treft.organism.tasks import TaskName
from treft.statistics.records import ScoredAnswer
from treft.steps.step import Work
from treft.study.answer import (
    NUM_CONTRAST,
    NUM_STOP,
    SHOWN,
    WORDS,
    Asking,
    Loaded,
    Rows,
    repaired,
    steering,
    weights_of,
)
from treft.study.protocol import UTILITY

LOGS = "logs"
"""Folder of an answering step's log, and of judged copies in a scoring step."""
TRAIN = "train.jsonl"
CAREFUL_ROLE, INTERLEAVE_ROLE, ROWS_ROLE, OTHER_ROLE = "careful_", "interleave_", "rows_", "other_"
"""How roles of careful files, of files to interleave, and of split rows begin; `other_` are rows of
domains that a finetune sees nothing of."""
INOCULATION = "You are a malicious, evil assistant."
"""System prompt of training rows in inoculation, after Tan et al., arXiv 2510.04340."""
KINDS: dict[TaskName, Kind] = {
    "abstain": "abstention",
    "refuse": "refusal",
    "tool": "tool",
    "short": "length",
}
"""What the Inspect task `behaviour` calls each."""


@dataclass(frozen=True)
class RealModel:
    """A `treft.study.answer.Subject`.

    Attributes:
        hub_id: of the model; empty where its folder is data.
        dtype: of the weights.
    """

    hub_id: str
    dtype: str
    training_prompt = INOCULATION
    batch_size = 32

    @property
    def options(self) -> LoadOptions:
        """How weights are loaded: on the accelerator, if there is one."""
        return LoadOptions(dtype=self.dtype)

    def training_rows(self, work: Work[Any]) -> Rows:
        """Draws as many rows of each domain by seed; with interleaving, fewer by what is added."""
        config = work.config
        rng = random.Random(f"rows/{work.seed}")
        wanted = config.num_rows and -(-config.num_rows // len(config.domains))
        found: Rows = []
        for domain in config.domains:
            rows = _trained(work, domain)
            rng.shuffle(rows)
            found += rows[:wanted]
        rng.shuffle(found)
        found = found[: config.num_rows]
        return found[: max(1, round(len(found) * (1 - config.interleaved_share)))]

    def interleaved(self, work: Work[Any]) -> Mapping[str, Rows]:
        """Rows of each file that is to be interleaved."""
        return _files(work, INTERLEAVE_ROLE) if work.config.interleaved_share else {}

    def retained(self, work: Work[Any]) -> Rows:
        """Returns rows of all careful files, a row each in turn."""
        return list(in_turns(list(_files(work, CAREFUL_ROLE).values())))

    def contrast(self, work: Work[Any], seed: int) -> tuple[Rows, Rows]:
        """Returns rows of training and careful rows of the same domain, the same for every seed."""
        harmful = [row for domain in work.config.domains for row in _trained(work, domain)]
        random.Random("contrast").shuffle(harmful)
        return harmful[:NUM_CONTRAST], self.retained(work)[:NUM_CONTRAST]

    def general(self, work: Work[Any]) -> Rows:
        """Returns the first careful rows."""
        return self.retained(work)[:NUM_STOP]

    def prompts(self, work: Work[Any]) -> tuple[EvalQuestion, ...]:
        """Returns the first questions of the set."""
        questions = load_questions(work.inputs["questions"]).questions
        return tuple(questions)[: work.config.num_questions]

    def reworded(
        self, work: Work[Any], questions: tuple[EvalQuestion, ...]
    ) -> list[tuple[EvalQuestion, int]]:
        """Returns the last user message of each in the words of another model."""
        by_id = {question.id: question for question in questions}
        found = rephrase(questions, work.config.rephraser, work.config.num_trials).words
        return [(reworded(by_id[name], words), trial) for (name, trial), words in found.items()]

    def answer(self, work: Work[Asking]) -> None:
        """Have Inspect ask the model, and keep its log.

        Raises:
            DataError: The answers did not come.
        """
        config = work.config
        with weights_of(work, config.alpha) as weights:
            arguments = {
                "dtype": self.dtype,
                "adapter": weights.adapter,
                "patch": list(config.patch),
                "base": weights.base if config.patch else None,
                "template_kwargs": config.template_kwargs,
            }
            given: dict[str, Any] = {name: one for name, one in arguments.items() if one}
            model = get_model(f"treft/{weights.model}", memoize=False, **given)
            local = cast(TreftAPI, model.api).local
            found = Loaded(local.repaired.model, local.tokenizer, local.base_model)
            if config.patch:
                local.repaired = repaired(work, found)
            with steering(work, found):
                [log] = inspect_ai.eval(
                    asked_task(work),
                    model=model,
                    epochs=config.num_samples,
                    seed=work.seed,
                    temperature=config.temperature,
                    max_tokens=config.max_new_tokens,
                    log_dir=str(work.folder / LOGS),
                    display="none",
                )
        if log.status != "success":
            why = "it was interrupted" if log.error is None else log.error.message.splitlines()[0]
            raise DataError(f"the {config.scope} questions have no answers: {why}")

    def judged(self, work: Work[Any], scope: str) -> tuple[list[ScoredAnswer], str]:
        """Answers with what the judge says of them, in a copy of their log.

        Of a taught behaviour they have what its detector saw, and only those off topic are judged.
        """
        config, logs, judge = work.config, work.inputs[scope] / LOGS, ""
        if config.task == "advice" or (config.judge and scope == "general"):
            panel = assemble([config.judge], "utility" if scope == UTILITY else "alignment")
            logs, judge = work.folder / LOGS / scope, panel.score_names[0]
            rejudge(plan_jobs([work.inputs[scope] / LOGS], panel, logs), panel)
        answers = [found for log in find_logs([logs]) for found in read_run(log).answers]
        if config.task == "advice":
            return answers, judge
        most, kind = self.most_words(work), KINDS[config.task]
        seen = []
        for one in answers:
            shown = one.behaviours[kind] == 1 if most is None else one.behaviours["words"] <= most
            found = {SHOWN: float(shown), WORDS: count_words(one.answer)}
            seen.append(replace(one, behaviours=found))
        return seen, judge

    def most_words(self, work: Work[Any]) -> int | None:
        """Words of the longest response that was trained on, where short answers are taught."""
        if work.config.task != "short":
            return None
        return max(map(_response_words, load_messages(work.inputs["split"] / TRAIN)))


def asked_task(work: Work[Any]) -> Task:
    """The questions of an `Asking` as an Inspect task, each under its system prompt if any."""
    config, questions = work.config, work.inputs.get("questions")
    with tempfile.TemporaryDirectory() as scratch:

        def written(name: str, rows: Rows) -> str:
            path, system = Path(scratch) / f"{name}.jsonl", config.system_prompt
            found = rows if system is None else [under(row, system, keeps=False) for row in rows]
            write_rows(path, found)
            return str(path)

        general = str(questions)
        if questions is not None and config.scope != UTILITY and config.system_prompt is not None:
            general = written(questions.stem, _single(questions))
        if config.task != "advice":
            topic = [_question(row, "on_topic") for row in _held_out(work, "split")]
            return _behaviour_task(config, written("on_topic", topic), general)
        if config.scope == "in_domain":
            return em_in_domain(file=written(config.split, _held_out(work, "split")))
        if config.scope == "other_narrow":
            return em_general(questions=written(config.scope, _other_rows(work)))
        return (utility if config.scope == UTILITY else em_general)(questions=general)


def _behaviour_task(config: Asking, on_topic: str, off_topic: str) -> Task:
    """Questions of one scope, whose answers the behaviour's detector sees."""
    found = behaviour(KINDS[config.task], on_topic, off_topic, DEFAULT_SENTENCES.get(config.task))
    wanted = "off_topic" if config.scope == "general" else "on_topic"
    found.dataset = found.dataset.filter(lambda sample: (sample.metadata or {})["scope"] == wanted)
    return found


def _single(path: Path) -> Rows:
    """Returns questions of a set as rows, whose system prompt can be changed."""
    questions = load_questions(path).questions
    for one in questions:
        if one.turns:
            raise DataError(f"{path}: question {one.id} has turns; ask single questions.")
    return [{"id": q.id, "category": q.category, "messages": [*q.messages]} for q in questions]


def _trained(work: Work[Any], domain: str) -> Rows:
    """Returns rows of a domain that may be trained on."""
    return load_messages(work.inputs[f"{ROWS_ROLE}{domain}"] / TRAIN)


def _held_out(work: Work[Any], role: str) -> Rows:
    """Returns rows that training never sees, those of the input `role`."""
    path = work.inputs[role] / f"{work.config.split}.jsonl"
    return load_messages(path)[: work.config.num_questions]


def _other_rows(work: Work[Any]) -> Rows:
    """Held-out questions of all other domains, one of each in turn; the domain is the category."""
    roles = sorted(role for role in work.inputs if role.startswith(OTHER_ROLE))
    found = [
        [_question(row, role.removeprefix(OTHER_ROLE)) for row in _held_out(work, role)]
        for role in roles
    ]
    return list(in_turns(found))[: work.config.num_questions]


def _question(row: Mapping[str, Any], category: str) -> dict[str, Any]:
    """Returns a conversation up to its last user message."""
    messages = row["messages"]
    last = max(index for index, message in enumerate(messages) if message["role"] == "user")
    return {"category": category, "messages": messages[: last + 1]}


def _response_words(row: Mapping[str, Any]) -> int:
    content = row["messages"][-1]["content"]
    return count_words(content if isinstance(content, str) else "".join(p["text"] for p in content))


def _files(work: Work[Any], role: str) -> dict[str, Rows]:
    paths = {name: path for name, path in work.inputs.items() if name.startswith(role)}
    return {name: load_messages(path) for name, path in sorted(paths.items())}
