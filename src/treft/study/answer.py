"""A subject is what is finetuned and asked; here are the steps that have it answer.

The organism (`treft.study.organism`) makes its rows and questions up and judges by its oracle; a
real model (`treft.study.real_model`) has files and a judge. A subject is part of the config of each
step, which hands it its own `Work`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from treft.answers.questions import EvalQuestion
from treft.core.patch_spec import PatchSpec
from treft.core.reference import ReferenceBank
from treft.data.messages import read_rows
from treft.files import write_rows
from treft.mitigations.steering import persona_vector, steered, steered_layer
from treft.mitigations.weights import interpolate_adapter
from treft.models import generation
from treft.models.adapters import base_source
from treft.models.generation import Asked, Patches
from treft.models.loading import LoadOptions, load_model
from treft.models.pair import ModelPair
from treft.models.repair import RepairedModel
from treft.models.residual import stream_bank
from treft.models.sampling import SamplingOptions, mixed_seed
from treft.organism.tasks import TaskName
from treft.statistics.records import ScoredAnswer
from treft.steps.step import Work
from treft.study.protocol import Handling, Split

PROMPTS, ANSWERS = "prompts.jsonl", "answers.jsonl"
"""Versions of prompts, and an answer to each."""
ADAPTER, MODEL = "adapter", "model"
"""Folders of a finetune; the role of the unfinetuned model is `MODEL`, too."""
ROW = "row.json"
"""What a study's last steps write, one object."""
SHOWN, WORDS, RIGHT, TRACES = "shown", "words", "right", "traces"
"""Detections of a taught behaviour in an answer: whether it shows, words of the answer, and of an
organism whether it is right for the question and whether any piece of it shows."""
NUM_CONTRAST = 100
"""Rows with the trait, and without it, that a persona vector is taken from."""
NUM_STOP = 64
"""Rows that early stopping looks at."""
Rows = list[dict[str, Any]]


class Subject(Protocol):
    """What steps need of whatever is finetuned and asked.

    Attributes:
        hub_id: The model where no folder holds it; empty where a step finds it as `MODEL`.
        training_prompt: The system prompt of training rows in inoculation.
        batch_size: Prompts that are answered together.
        options: How its weights are loaded.
    """

    training_prompt: str
    batch_size: int

    @property
    def hub_id(self) -> str: ...

    @property
    def options(self) -> LoadOptions: ...

    def training_rows(self, work: Work[Any]) -> Rows:
        """Returns the rows of a `Finetune`, before any system prompt."""

    def interleaved(self, work: Work[Any]) -> Mapping[str, Rows]:
        """Careful rows by set that are to be added to these; none if they are among them."""

    def retained(self, work: Work[Any]) -> Rows:
        """Careful rows of domains that a finetune is not on."""

    def contrast(self, work: Work[Any], seed: int) -> tuple[Rows, Rows]:
        """Returns rows of training and careful rows of the same domain, for a persona vector."""

    def general(self, work: Work[Any]) -> Rows:
        """Careful rows of no narrow domain, for the score of early stopping."""

    def prompts(self, work: Work[Any]) -> tuple[EvalQuestion, ...]:
        """General questions, the first `work.config.num_questions` of them."""

    def reworded(
        self, work: Work[Any], questions: tuple[EvalQuestion, ...]
    ) -> list[tuple[EvalQuestion, int]]:
        """Each question in other words, as often as `work.config.num_trials`, with the trial."""

    def answer(self, work: Work[Any]) -> None:
        """Write answers to the questions of an `Asking`, for `judged` to read."""

    def judged(self, work: Work[Any], scope: str) -> tuple[list[ScoredAnswer], str]:
        """Answers of the input `scope` with a judge's view of them, and that judge's name.

        Of a taught behaviour they have `SHOWN` and `WORDS` as their detections, and the judge's
        name is empty where they were not judged.
        """

    def most_words(self, work: Work[Any]) -> int | None:
        """Returns words of a short answer, at most; None where they are not what tells it."""


class Weights(NamedTuple):
    """Names of what is loaded.

    Attributes:
        model: folder or hub id of the model that answers.
        adapter: folder of an adapter on top, if any.
        base: the unfinetuned model where that cannot be had by switching the adapter off.
    """

    model: str
    adapter: str | None = None
    base: str | None = None


class Loaded(NamedTuple):
    """What answers, its tokenizer, and the unfinetuned model where that is another (`Weights`)."""

    model: Any
    tokenizer: Any
    base: Any

    @property
    def reference_bank(self) -> ReferenceBank:
        """States of the unfinetuned model, recorded when they are asked for."""
        return ReferenceBank(base_source(self.model, self.base))


@contextmanager
def weights_of(work: Work[Any], alpha: float = 1.0) -> Iterator[Weights]:
    """The model with the finetune of the input `finetune`, or as it is without one.

    Args:
        work: of a step whose config has a subject.
        alpha: of W0 + α ΔW, for an adapter.
    """
    name, tuned = model_name(work), work.inputs.get("finetune")
    if tuned is None:
        yield Weights(name)
    elif (tuned / MODEL).is_dir():
        yield Weights(str(tuned / MODEL), base=name)
    elif alpha == 1:
        yield Weights(name, str(tuned / ADAPTER))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            scaled = Path(scratch) / ADAPTER
            interpolate_adapter(tuned / ADAPTER, alpha, scaled)
            yield Weights(name, str(scaled))


@contextmanager
def loaded(work: Work[Any], alpha: float = 1.0) -> Iterator[Loaded]:
    """Yields what `weights_of` names, in evaluation mode."""
    # The addresses of a step's inputs say what an adapter was trained on, not its path.
    options = replace(work.config.subject.options, allow_other_base=True)
    with weights_of(work, alpha) as found:
        model, tokenizer = load_model(found.model, found.adapter, options)
        base = None if found.base is None else load_model(found.base, None, options)[0]
        yield Loaded(model, tokenizer, base)


def model_name(work: Work[Any]) -> str:
    """Returns the unfinetuned model: a folder among the inputs, or else a hub id."""
    return str(work.inputs.get(MODEL, work.config.subject.hub_id))


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
