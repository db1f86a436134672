"""A subject: what is finetuned and asked. It gives rows, questions, and a view of the answers.

The organism (`treft.study.organism`) makes its rows and questions up and judges by its oracle; a
real model (`treft.study.real_model`) has files and a judge. A subject is part of the config of each
step, which hands it its own `Work`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from treft.answers.questions import EvalQuestion
from treft.core.reference import ReferenceBank
from treft.mitigations.weights import interpolate_adapter
from treft.models.adapters import base_source
from treft.models.loading import LoadOptions, load_model
from treft.statistics.records import ScoredAnswer
from treft.steps.step import Work

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
    """What steps need of whatever is finetuned and asked."""

    @property
    def options(self) -> LoadOptions:
        """How its weights are loaded."""

    @property
    def hub_id(self) -> str:
        """The model where no folder holds it; empty where a step finds it as `MODEL`."""

    @property
    def training_prompt(self) -> str:
        """The system prompt of training rows in inoculation."""

    @property
    def batch_size(self) -> int:
        """Prompts that are answered together."""

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
        """Write answers to the questions of an `Asking`, for `judged` and `detected` to read."""

    def judged(self, work: Work[Any], scope: str) -> tuple[list[ScoredAnswer], str]:
        """Answers of the input `scope` with a judge's view of them, and that judge's name."""

    def detected(self, work: Work[Any], scope: str) -> tuple[list[ScoredAnswer], str]:
        """Likewise, of a taught behaviour: with `SHOWN` and `WORDS` as their detections.

        The judge's name is empty where the answers were not judged.
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
