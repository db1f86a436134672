"""Steps that have a subject answer, with or without its finetune."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from treft.chat.regions import ChatRegions
from treft.core.patch_spec import PatchSpec
from treft.core.reference import ReferenceBank
from treft.data.messages import read_rows
from treft.files import write_rows
from treft.mitigations.steering import persona_vector, steered, steered_layer
from treft.models import generation
from treft.models.adapters import base_source
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


@dataclass(frozen=True)
class Asking(Handling):
    """Questions of one scope, and what is done to the model meanwhile.

    Attributes:
        subject: Is asked.
        domain: Of in-domain questions.
        scope: Of the questions.
        split: Of held-out questions.
        num_questions: The first of them; None for all.
        num_samples: Answers to each.
        temperature: Of sampling.
        max_new_tokens: Cap of an answer.
        enable_thinking: Template variable; None leaves it unset.
        task: What was taught.
        system_prompt: Of the questions; None for the template's default.
        domains: Of the rows that a persona vector is taken from.
        row_seeds: Each of an organism's answers is drawn with a seed of its own, so that answers
            with and without a patch are paired; else a batch has one.
    """

    subject: Subject
    domain: str
    scope: str
    split: Split
    num_questions: int | None
    num_samples: int
    temperature: float
    max_new_tokens: int
    enable_thinking: bool | None = None
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
    prompts = [(row["trial"], tuple(row["token_ids"])) for row in rows]
    asked = [generation.Asked(ids, mixed_seed(work.seed, trial, *ids)) for trial, ids in prompts]
    with loaded(work) as found:
        answers = generation.answer(found.model, found.tokenizer, asked, sampling_of(work.config))
    write_rows(work.folder / ANSWERS, [{"answer": one.text} for one in answers])


def answers_by_row(work: Work[Asking], found: Loaded, chats: Sequence[ChatRegions]) -> list[str]:
    """Returns answers drawn each with a seed that follows from the step's and the prompt."""
    spec, bank = patching(work, found)
    patches = RepairedModel(found.model, found.tokenizer, bank, spec).patches(chats)
    asked = [
        generation.Asked(chat.input_ids, mixed_seed(work.seed, 1, *chat.input_ids))
        for chat in chats
    ]
    sampling = sampling_of(work.config)
    answers = generation.answer(found.model, found.tokenizer, asked, sampling, patches)
    return [one.text for one in answers]


def sampling_of(config: Asking) -> SamplingOptions:
    """Returns how answers are drawn."""
    return SamplingOptions(
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.subject.batch_size,
    )


def patching(work: Work[Asking], found: Loaded) -> tuple[PatchSpec, ReferenceBank | None]:
    """Returns what is patched, and where its states come from; None where nothing is."""
    config = work.config
    if not config.patch:
        return PatchSpec("unpatched", ()), None
    spec = PatchSpec(
        "patch",
        config.patch,
        kinds=config.kinds,
        window=config.window,
        num_positions=config.num_positions,
        position_seed=work.seed,
    )
    if config.stream_layer is None:
        return spec, reference_bank(found)
    return spec, stream_bank(found.model, config.stream_layer, found.base)


def reference_bank(found: Loaded) -> ReferenceBank:
    """Returns states of the unfinetuned model."""
    return ReferenceBank(base_source(found.model, found.base))


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
