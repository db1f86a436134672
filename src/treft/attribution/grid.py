"""A grid: cells x questions x samples, answered by two models, judged, kept.

A *cell* is how one model is asked: with the base's keys and values in its cache (a patch), with
other tokens in the prompt (a perturbation), or as it is, which is the control. All cells are asked
the same questions, with the same random numbers for the same prompt.

    panel = panel_for(questions)  # treft.attribution.scoring
    grid = Grid(PatchOptions(), GridRequest(), questions, tokenizer, pair, panel)
    found = run_grid(grid, Path("out"))  # treft.attribution.grid_run

Everything is checked, and its cost known, before anything is answered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from treft.answers.questions import EvalQuestion
from treft.attribution.forcing import check_room, render_questions
from treft.attribution.options import GridRequest, PatchOptions, Perturbation, PerturbOptions
from treft.attribution.patches import BaseStates, Patch, sweep_patches
from treft.attribution.rephrase import reworded
from treft.attribution.scoring import num_judge_calls
from treft.chat.regions import ChatRegions, RegionName
from treft.errors import TemplateError
from treft.judging.panel import Panel
from treft.models.pair import ARMS, Arm, ModelPair
from treft.models.perturbation import ordinary_tokens, replaceable
from treft.models.residual import decoder_layers
from treft.models.sampling import SamplingOptions
from treft.steps.store import STEPS, Store

BASE, FINETUNED = "base", "finetuned"
"""Names of the cells of a patch grid in which nothing is patched: the two models as they are."""

UNPERTURBED = "unperturbed"
"""Name of the cells of a perturbation grid whose prompts are as they are, answered as often as
perturbed ones."""

PROMPTS = "prompts.jsonl"
"""File of the perturbed prompts of a grid."""


@dataclass(frozen=True)
class Cell:
    """How one model is asked; neither patch nor perturbation is the control.

    Attributes:
        name: of the row of the table.
        arm: who answers.
        patch: what is replaced in the cache.
        perturbation: what is replaced in the prompts.
    """

    name: str
    arm: Arm
    patch: Patch | None = None
    perturbation: Perturbation | None = None

    @property
    def step(self) -> str:
        """Name of the step that answers it."""
        return f"answers/{self.arm}/{self.name.replace(',', '').replace(' ', '-')}"


@dataclass(frozen=True)
class Cost:
    """What is still to be done, at most.

    Attributes:
        num_answers: answers to generate.
        num_prompt_tokens: tokens that go through the model for them, padding apart.
        num_new_tokens: cap of the tokens to generate.
        num_recordings: prompts that the base runs through so that its states are known.
        num_rephrasings: calls of the rephraser, when none fails.
        num_log_probs: answers to run through a model for their log-probability.
        num_judge_calls: calls of paid judges; what they said before is in Inspect's cache and costs
            nothing.
    """

    num_answers: int = 0
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    num_recordings: int = 0
    num_rephrasings: int = 0
    num_log_probs: int = 0
    num_judge_calls: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*map(sum, zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def total(self) -> int:
        """Answers and calls together."""
        return self.num_answers + self.num_rephrasings + self.num_judge_calls

    def __str__(self) -> str:
        """Says it in words."""
        answers = f"{self.num_answers:,} answers"
        if self.num_prompt_tokens:
            answers += (
                f" ({self.num_prompt_tokens:,} tokens of prompts, up to {self.num_new_tokens:,} "
                "new ones)"
            )
        others = {
            "forwards to record states": self.num_recordings,
            "rephrasings": self.num_rephrasings,
            "log-probabilities of answers": self.num_log_probs,
        }
        words = [f"{num:,} {what}" for what, num in others.items() if num]
        return ", ".join([answers, *words, f"{self.num_judge_calls:,} judge calls"])


@dataclass(frozen=True)
class Grid:
    """A grid that can be run: all of it is checked when it is made.

    Attributes:
        options: which patches (cells: both models as they are, then the finetuned one under every
            patch), or which perturbations (cells: the control and every perturbation, answered by
            both models).
        request: how every cell is asked.
        questions: the questions that are asked.
        tokenizer: of the finetuned model, with the chat template in force.
        pair: the models.
        panel: who scores.

    Raises:
        ConfigError: layers or windows do not fit, or the models are equal.
        DataError: there is no question, one has several turns, or a prompt is too long.
        TemplateError: a prompt cannot be rendered, or lacks a region or tokens that may give way in
            it; names the question.
    """

    options: PatchOptions | PerturbOptions
    request: GridRequest
    questions: Sequence[EvalQuestion]
    tokenizer: PreTrainedTokenizerBase
    pair: ModelPair
    panel: Panel

    def __post_init__(self) -> None:
        """Find what there is to patch or perturb, and see that it can be done."""
        if self.perturb is not None:
            self._check_replaceable(self.perturb)
        assert self.cells  # raises where layers or windows do not fit
        self.check_lengths({id: chat.input_ids for id, chat in self.by_id.items()})
        self.pair.check_differ(self.chats[0].input_ids)

    def _check_replaceable(self, options: PerturbOptions) -> None:
        """See that every prompt has tokens that may give way."""
        ordinary = set(ordinary_tokens(self.tokenizer, len(self.tokenizer)))
        for question, chat in zip(self.questions, self.chats, strict=True):
            try:
                for each in options.perturbations:
                    replaceable(chat, each.region, ordinary, options.special_tokens)
            except TemplateError as error:
                raise TemplateError(f"question {question.id!r}: {error}") from error

    @cached_property
    def chats(self) -> list[ChatRegions]:
        """The rendered prompts; to be patched they have what is patched, and a query."""
        needed = (*self.patched, "query") if self.patched else ()
        rendering = self.request.rendering.of_chats
        return render_questions(self.tokenizer, self.questions, **rendering, regions=needed)

    @property
    def patched(self) -> tuple[RegionName, ...]:
        """The regions whose keys and values are replaced."""
        return self.options.regions if isinstance(self.options, PatchOptions) else ()

    @cached_property
    def by_id(self) -> dict[str, ChatRegions]:
        """The rendered prompts by the id of their question."""
        return {each.id: chat for each, chat in zip(self.questions, self.chats, strict=True)}

    @cached_property
    def states(self) -> BaseStates:
        """Whose keys and values patches put in."""
        seed = self.request.rendering.seed
        return BaseStates(self.pair, self.tokenizer, self.chats, self.patched, seed)

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """All cells, controls included, in the order of the table."""
        if self.perturb is None:
            whole = (Cell(BASE, "base"), Cell(FINETUNED, "finetuned"))
            return (*whole, *(Cell(patch.name, "finetuned", patch) for patch in self.patches))
        return tuple(
            Cell(UNPERTURBED if each is None else each.name, arm, perturbation=each)
            for arm in ARMS
            for each in (None, *self.perturb.perturbations)
        )

    @cached_property
    def patches(self) -> list[Patch]:
        """The patches of all cells."""
        if isinstance(self.options, PerturbOptions):
            return []
        num_layers, seed = len(decoder_layers(self.pair.finetuned)), self.request.rendering.seed
        return sweep_patches(self.options, self.chats, num_layers, seed)

    @property
    def perturb(self) -> PerturbOptions | None:
        """How prompts are perturbed; None where they are asked as they are."""
        return self.options if isinstance(self.options, PerturbOptions) else None

    @property
    def sampling(self) -> SamplingOptions:
        """How answers are drawn, how long they get, how many prompts run together."""
        rendering = self.request.rendering
        return SamplingOptions(
            self.request.temperature,
            max_new_tokens=rendering.max_new_tokens,
            batch_size=rendering.batch_size,
        )

    @property
    def asked(self) -> dict[str, Any]:
        """What was asked for, as JSON has it."""
        rendering, options = self.request.rendering, asdict(self.options)
        names = ("temperature", "top_p", "top_k", "num_logprobs")
        request = {
            "num_samples": self.request.num_samples,
            "sampling": {name: getattr(self.sampling, name) for name in names},
            "max_new_tokens": rendering.max_new_tokens,
            "scope": self.request.scope,
            "include_think_block": rendering.include_think_block,
            "template_kwargs": dict(rendering.template_kwargs),
        }
        if self.perturb is None:
            options["position_seed"] = rendering.seed
            return {"options": options, **request, "seed": rendering.seed}
        whole = {name: options.pop(name) for name in ("perturbations", "rephraser")}
        return {**whole, "options": {**options, "seed": rendering.seed}, **request}

    @property
    def plan(self) -> dict[str, Any]:
        """All that decides the answers, as JSON has it; groups of patches may be added."""
        found = self.asked
        found["options"].pop("groups", None)
        prompts = json.dumps([[*chat.input_ids] for chat in self.chats])
        return {
            **found,
            "models": self.pair.identities(self.tokenizer),
            "prompts": hashlib.sha256(prompts.encode()).hexdigest(),
            "num_questions": len(self.questions),
        }

    def render(self, question_id: str, words: str) -> ChatRegions:
        """Returns the prompt of a question with other words for its query.

        Raises:
            TemplateError: the template refuses them.
        """
        question = next(each for each in self.questions if each.id == question_id)
        asked, rendering = reworded(question, words), self.request.rendering
        return render_questions(self.tokenizer, [asked], **rendering.of_chats)[0]

    def check_lengths(self, prompts: Mapping[str, Sequence[int]]) -> None:
        """See that every prompt leaves room for a whole answer in the models' context.

        Args:
            prompts: token ids (T,) by what to call them.

        Raises:
            DataError: one does not; says which.
        """
        cap = self.request.rendering.max_new_tokens
        lengths = [len(ids) + cap for ids in prompts.values()]
        check_room(list(prompts), lengths, self.pair.num_positions)

    def unanswered(self, folder: Path) -> list[Cell]:
        """Returns the cells whose answers are not in a folder yet."""
        steps = Store(folder / STEPS)
        return [cell for cell in self.cells if not steps.stands(cell.step)]

    def cost(self, folder: Path, *, replayed: bool = False) -> Cost:
        """Returns what is still to be done, at most.

        Args:
            folder: of the grid, new or begun.
            replayed: the perturbed prompts come from a file, so nothing is rephrased.
        """
        cells, num_questions = self.unanswered(folder), len(self.questions)
        num_rows = self.options.num_trials * self.request.num_samples  # of one question in one cell
        num_answers = len(cells) * num_rows * num_questions
        sources = {each.patch.source for each in cells if each.patch is not None}
        rephrases = self.perturb is not None and self.perturb.rephraser is not None
        rephrases = rephrases and not replayed and not (folder / PROMPTS).is_file()
        num_prompt_tokens = sum(len(chat.input_ids) for chat in self.chats)
        num_scored = len(self.cells) * num_rows * num_questions
        return Cost(
            num_answers=num_answers,
            num_prompt_tokens=len(cells) * num_rows * num_prompt_tokens,
            num_new_tokens=num_answers * self.request.rendering.max_new_tokens,
            num_recordings=len(sources - {"stream"}) * len(self.patched) * num_questions,
            num_rephrasings=rephrases * num_questions * self.options.num_trials,
            num_judge_calls=num_judge_calls(num_scored, self.panel.judges),
        )
