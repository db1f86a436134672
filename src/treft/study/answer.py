"""Steps that have a subject answer, with or without its finetune."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from treft.core.patch_spec import PatchSpec
from treft.data.messages import read_rows
from treft.files import write_rows
from treft.mitigations.steering import persona_vector, steered, steered_layer
from treft.models import generation
from treft.models.generation import Asked, Patches
from treft.models.pair import ModelPair
from treft.models.repair import RepairedModel
from treft.models.residual import stream_bank
from treft.models.sampling import SamplingOptions, mixed_seed
from treft.organism.tasks import TaskName
from treft.steps.step import Work
from treft.study.protocol import Handling, Split
from treft.study.subject import Loaded, Subject, loaded

PROMPTS, ANSWERS = "prompts.jsonl", "answers.jsonl"
"""Versions of prompts, and an answer to each."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Which questions a step renders.

    Attributes:
        subject: Has them.
        domain: Of in-domain questions, and of the finetune.
        split: Of the questions.
        num_questions: The first of them; None for all.
        enable_thinking: Template variable; None leaves it unset.
    """

    subject: Subject
    domain: str
    split: Split
    num_questions: int | None
    enable_thinking: bool | None = None

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """Variables of the chat template."""
        thinking = self.enable_thinking
        return {} if thinking is None else {"enable_thinking": thinking}


@dataclass(frozen=True, kw_only=True)
class Asking(Questions, Handling):
    """Questions of one scope that are answered, and what is done to the model meanwhile.

    Attributes:
        scope: Of the questions.
        num_samples: Answers to each.
        temperature: Of sampling.
        max_new_tokens: Cap of an answer.
        task: What was taught.
        system_prompt: Of the questions; None for the template's default.
        domains: Of the rows that a persona vector is taken from.
        row_seeds: Each of an organism's answers is drawn with a seed of its own, so that answers
            with and without a patch are paired; else a batch has one.
    """

    scope: str
    num_samples: int
    temperature: float
    max_new_tokens: int
    task: TaskName = "advice"
    system_prompt: str | None = None
    domains: tuple[str, ...] = ()
    row_seeds: bool = False


def answer(work: Work[Asking]) -> None:
    """Have the subject answer its questions in its own way.

    Raises:
        DataError: The answers did not come.
    """
    work.config.subject.answer(work)


def answer_versions(work: Work[Asking]) -> None:
    """Answer each version; all models draw with the same random numbers."""
    rows = [row for row, _ in read_rows(work.inputs["prompts"] / PROMPTS)]
    with loaded(work) as found:
        answers = drawn(work, found, [(row["trial"], row["token_ids"]) for row in rows])
    write_rows(work.folder / ANSWERS, [{"answer": text} for text in answers])


def drawn(
    work: Work[Asking],
    found: Loaded,
    prompts: Iterable[tuple[int, Sequence[int]]],
    patches: Patches | None = None,
) -> list[str]:
    """Returns answers drawn each with a seed that follows from the step's, trial and prompt.

    Args:
        work: Says how answers are drawn.
        found: Who answers.
        prompts: Trial and token ids of each.
        patches: What is replaced in them.
    """
    config = work.config
    asked = [Asked(ids, mixed_seed(work.seed, trial, *ids)) for trial, ids in prompts]
    sampling = SamplingOptions(
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.subject.batch_size,
    )
    answers = generation.answer(found.model, found.tokenizer, asked, sampling, patches)
    return [one.text for one in answers]


def repaired(work: Work[Asking], found: Loaded) -> RepairedModel:
    """Returns the model with what is patched, and where its states come from."""
    config = work.config
    spec = PatchSpec(
        "patch",
        config.patch,
        kinds=config.kinds,
        window=config.window,
        num_positions=config.num_positions,
        position_seed=work.seed,
    )
    bank = found.reference_bank if config.patch else None
    if config.stream_layer is not None:
        bank = stream_bank(found.model, config.stream_layer, found.base)
    return RepairedModel(found.model, found.tokenizer, bank, spec)


@contextmanager
def steering(work: Work[Asking], found: Loaded) -> Iterator[None]:
    """A persona vector of the unfinetuned model is taken away, coefficient times."""
    config, model = work.config, found.model
    if not config.steering:
        yield
        return
    layer = steered_layer(model)
    rows = config.subject.contrast(work, seed=0)
    with ModelPair(model, found.base).use("base") as reference:
        vector = persona_vector(reference, found.tokenizer, *rows, layer=layer)
    with steered(model, layer, -config.steering * vector):
        yield
