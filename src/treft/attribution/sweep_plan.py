"""What a patching sweep does and costs, decided and checked before anything is computed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from treft.answers.questions import EvalQuestion
from treft.attribution.forcing import render_questions
from treft.attribution.scoring import num_judge_calls
from treft.attribution.sweep import SweepCell, SweepOptions, sweep_cells
from treft.chat.regions import ChatRegions
from treft.errors import ConfigError, DataError, TemplateError
from treft.models.pair import ModelPair
from treft.models.residual import decoder_layers
from treft.models.sampling import SamplingOptions, mixed_seed
from treft.steps.store import Steps

BASE, FINETUNED = "base", "finetuned"
"""As names of cells: the two models, neither of them patched."""


@dataclass(frozen=True)
class SweepRequest:
    """What must be equal for a sweep to be continued.

    Attributes:
        options: which patches.
        num_samples: answers to each question under each patch.
        seed: of the answers; answer i to a question has the same random numbers under each patch.
        sampling: how answers are drawn.
        max_new_tokens: cap of an answer.
        scope: where answers count, `general` or `in_domain`.
        include_think_block: an empty think block belongs to the postfix.
        template_kwargs: further template variables.

    Raises:
        ConfigError: options are out of range or do not go together.
    """

    options: SweepOptions = field(default_factory=SweepOptions)
    num_samples: int = 1
    seed: int = 0
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    max_new_tokens: int = 256
    scope: str = "general"
    include_think_block: bool = True
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Validate before any work starts."""
        for name in ("num_samples", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.sampling.temperature == 0 and self.num_samples > 1:
            raise ConfigError(
                "greedy answers to a prompt are all the same: more samples need a temperature."
            )
        if self.scope not in ("general", "in_domain"):
            raise ConfigError(f"scope is general or in_domain, not {self.scope!r}.")


@dataclass(frozen=True)
class SweepCost:
    """What is still to be done, at most.

    Attributes:
        num_answers: to generate.
        num_prompt_tokens: that go through the model for them, padding apart.
        num_new_tokens: cap of the tokens to generate.
        num_recordings: prompts that the base runs through so that its states are known.
        num_judge_calls: of paid judges.
    """

    num_answers: int
    num_prompt_tokens: int
    num_new_tokens: int
    num_recordings: int
    num_judge_calls: int

    @property
    def total(self) -> int:
        """Answers and judge calls."""
        return self.num_answers + self.num_judge_calls

    def __str__(self) -> str:
        """In words."""
        words = (
            f"{self.num_answers:,} answers ({self.num_prompt_tokens:,} tokens of prompts, up to "
            f"{self.num_new_tokens:,} new ones), {self.num_recordings:,} forwards to record states"
        )
        return f"{words}, {self.num_judge_calls:,} judge calls"


@dataclass(frozen=True)
class SweepRow:
    """One answer to generate.

    Attributes:
        index: of the question.
        question_id: its id.
        sample: which answer to it, from 1.
        seed: of the answer.
    """

    index: int
    question_id: str
    sample: int
    seed: int

    @property
    def key(self) -> dict[str, Any]:
        """What its line in the file of answers begins with."""
        return {"question_id": self.question_id, "sample": self.sample, "seed": self.seed}


@dataclass(frozen=True)
class SweepPlan:
    """A sweep that can be run.

    Attributes:
        request: what was asked for.
        questions: that are asked.
        tokenizer: of the finetuned model, with the chat template in force.
        chats: the rendered prompts.
        cells: the patches, controls included.
        num_layers: of the model.
    """

    request: SweepRequest
    questions: tuple[EvalQuestion, ...]
    tokenizer: PreTrainedTokenizerBase
    chats: tuple[ChatRegions, ...]
    cells: tuple[SweepCell, ...]
    num_layers: int

    @classmethod
    def of(
        cls,
        request: SweepRequest,
        questions: Sequence[EvalQuestion],
        tokenizer: PreTrainedTokenizerBase,
        pair: ModelPair,
    ) -> SweepPlan:
        """Render the prompts and find what there is to patch.

        Raises:
            ConfigError: layers or windows do not fit.
            DataError: there is no question, or a prompt is too long for the models' context.
            TemplateError: a prompt cannot be rendered, or lacks a region; names the question.
        """
        chats = render_questions(
            tokenizer,
            questions,
            template_kwargs=request.template_kwargs,
            include_think_block=request.include_think_block,
        )
        for question, chat in zip(questions, chats, strict=True):
            _check_prompt(question, chat, request, pair.num_positions)
        num_layers = len(decoder_layers(pair.finetuned))
        cells = sweep_cells(request.options, chats, num_layers)
        return cls(request, tuple(questions), tokenizer, tuple(chats), tuple(cells), num_layers)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all cells: the unpatched models first."""
        return (BASE, FINETUNED, *(cell.name for cell in self.cells))

    @property
    def rows(self) -> list[SweepRow]:
        """Answers of each cell, in order."""
        return [
            SweepRow(
                index,
                question.id,
                sample,
                mixed_seed(self.request.seed, sample, *self.chats[index].input_ids),
            )
            for index, question in enumerate(self.questions)
            for sample in range(1, self.request.num_samples + 1)
        ]

    def unanswered(self, folder: Path) -> list[str]:
        """Cells whose answers are not there yet."""
        return [name for name in self.names if not answers_path(folder, name).is_file()]

    def cost(self, folder: Path, judges: Iterable[str]) -> SweepCost:
        """What the sweep costs from here.

        Args:
            folder: of the sweep, new or begun.
            judges: names, as `panel_for` gives them.
        """
        left = self.unanswered(folder)
        num_rows = len(self.questions) * self.request.num_samples
        num_tokens = sum(len(chat.input_ids) for chat in self.chats) * self.request.num_samples
        patched = {cell.source for cell in self.cells if cell.name in left}
        num_requests = len(self.request.options.regions) * len(self.chats)
        return SweepCost(
            num_answers=len(left) * num_rows,
            num_prompt_tokens=len(left) * num_tokens,
            num_new_tokens=len(left) * num_rows * self.request.max_new_tokens,
            num_recordings=len(patched - {"stream"}) * num_requests,
            num_judge_calls=num_judge_calls(len(self.names) * num_rows, list(judges)),
        )

    def claim(self, folder: Path, pair: ModelPair) -> None:
        """Write the plan into a folder, or see that it is the one that was begun there.

        Raises:
            ConfigError: the folder holds something else.
        """
        Steps(folder, self._record(pair), "plan of a sweep").claim()

    def _record(self, pair: ModelPair) -> dict[str, Any]:
        """All that decides the answers, as JSON has it; groups may be added to a sweep."""
        prompts = json.dumps([[*chat.input_ids] for chat in self.chats])
        found = {
            **asdict(self.request),
            "models": pair.identities(self.tokenizer),
            "prompts": hashlib.sha256(prompts.encode()).hexdigest(),
            "num_questions": len(self.questions),
        }
        for name in ("max_new_tokens", "stop", "batch_size"):
            found["sampling"].pop(name)
        found["options"].pop("groups")
        return dict(json.loads(json.dumps(found)))


def answers_path(folder: Path, cell: str) -> Path:
    """Where the answers of a cell are."""
    return folder / "answers" / f"{cell.replace(',', '').replace(' ', '-')}.jsonl"


def _check_prompt(
    question: EvalQuestion, chat: ChatRegions, request: SweepRequest, room: int | None
) -> None:
    """Before any forward: regions and length."""
    try:
        for region in {*request.options.regions, "query"}:
            chat.require(region)
    except TemplateError as error:
        raise TemplateError(f"question {question.id!r}: {error}") from error
    length, cap = len(chat.input_ids), request.max_new_tokens
    if room is not None and length + cap > room:
        raise DataError(
            f"the prompt of question {question.id!r} has {length} tokens and its answer may have "
            f"{cap}, but the model's context takes {room}: drop the question, or allow shorter "
            "answers."
        )
