"""What a diagnosis does and costs, decided and checked before anything is computed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from transformers import PreTrainedTokenizerBase

from treft.answers.questions import EvalQuestion
from treft.attribution.evidence import Rules
from treft.attribution.forcing import check_room
from treft.attribution.grid import Cost, Grid
from treft.attribution.measure import MAX_ROWS, PromptMargins
from treft.attribution.options import (
    GridRequest,
    PatchOptions,
    PerturbOptions,
    default_perturbations,
)
from treft.attribution.scoring import panel_for
from treft.data.messages import Conversation
from treft.errors import ConfigError
from treft.models.pair import ModelPair
from treft.progress import Progress
from treft.steps.store import STEPS, Store, check_claim

Budget = Literal["quick", "full"]

KIND = "diagnosis"
"""What `plan.json` is, in words."""
SWEEP, PERTURBATION = "sweep", "perturbation"
"""Folders of a full diagnosis's grids."""

WINDOW_WIDTH = 3
"""Tokens of a window in a full diagnosis."""


@dataclass(frozen=True)
class Subject:
    """What is diagnosed.

    Attributes:
        pair: the finetuned model and its base.
        tokenizer: of the finetuned model, with the chat template in force.
        general: prompts outside of the finetuned domain, one turn each.
        in_domain: prompts of the domain; may be empty.
        training: rows of the finetune, for its loss; may be empty.
        names: what the user called models and files, for the report and the next command.
    """

    pair: ModelPair
    tokenizer: PreTrainedTokenizerBase
    general: tuple[EvalQuestion, ...]
    in_domain: tuple[EvalQuestion, ...] = ()
    training: tuple[Conversation, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DiagnoseOptions:
    """How much is measured, and how.

    Attributes:
        budget: quick or full.
        request: how prompts are rendered and answered; margins take greedy answers, and of a full
            diagnosis samples are drawn at its temperature.
        rules: of the verdict.
        num_trials: full: perturbed versions of each prompt.
        judges: full: Inspect model names; by default the organism's oracle, where it can judge.

    Raises:
        ConfigError: a value is out of range.
    """

    budget: Budget = "quick"
    request: GridRequest = field(default_factory=lambda: GridRequest(num_samples=2))
    rules: Rules = field(default_factory=Rules)
    num_trials: int = 5
    judges: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Validate before anything is loaded."""
        if self.budget not in get_args(Budget):
            raise ConfigError(f"budget is quick or full, not {self.budget!r}.")
        if self.num_trials < 1 or self.request.temperature <= 0:
            raise ConfigError("num_trials must be at least 1, and temperature above 0.")
        if self.judges and self.budget == "quick":
            raise ConfigError("a quick diagnosis asks no judge: take --budget full.")

    @property
    def window_width(self) -> int | None:
        """None: a sixth of each region."""
        return WINDOW_WIDTH if self.budget == "full" else None


@dataclass(frozen=True)
class DiagnosisPlan:
    """A diagnosis that can be run.

    Attributes:
        subject: what is diagnosed.
        options: how much is measured.
        output: folder of the results.
        general: measures the prompts outside of the domain.
        in_domain: measures those of the domain; None without any.
        sampled: grids of a full diagnosis, by the name of their folder: `sweep`, answers under
            patches, and `perturbation`, answers to perturbed prompts; none of a quick one.
    """

    subject: Subject
    options: DiagnoseOptions
    output: Path
    general: PromptMargins
    in_domain: PromptMargins | None
    sampled: Mapping[str, Grid]

    @classmethod
    def of(
        cls,
        subject: Subject,
        output: Path,
        options: DiagnoseOptions | None = None,
    ) -> DiagnosisPlan:
        """See that everything can be done.

        Args:
            subject: what is diagnosed.
            output: folder for the steps; a diagnosis that was begun there goes on.
            options: how much is measured.

        Raises:
            ConfigError: the models are equal, the folder holds something else, or no judge is for
                these prompts.
            DataError: a prompt is too long for the context.
            TemplateError: the prompts share no template tokens, or one cannot be rendered.
        """
        options = options or DiagnoseOptions()
        check_claim(output, settings_of(subject, options), KIND)
        steps = Store((output / STEPS).resolve())
        meters = [
            PromptMargins(
                subject.pair, subject.tokenizer, questions, options.request.rendering, steps, scope
            )
            for scope, questions in (("general", subject.general), ("in_domain", subject.in_domain))
            if questions
        ]
        for meter in meters:
            cap = options.request.rendering.max_new_tokens
            lengths = [len(chat.input_ids) + cap for chat in meter.chats]
            ids = [question.id for question in meter.questions]
            check_room(ids, lengths, subject.pair.num_positions)
        general = meters[0]
        assert general.regions  # raises where prompts share nothing
        subject.pair.check_differ(general.chats[0].input_ids)
        sampled = _sampled(subject, general, options) if options.budget == "full" else {}
        return cls(subject, options, output, general, meters[1] if meters[1:] else None, sampled)

    def telling(self, progress: Progress) -> DiagnosisPlan:
        """The same plan, with somebody who is told about every batch."""
        inside = self.in_domain
        return replace(
            self,
            general=replace(self.general, progress=progress),
            in_domain=None if inside is None else replace(inside, progress=progress),
        )

    @property
    def cost(self) -> Cost:
        """What is still to be done, at most: steps that are kept count for margins only."""
        num, folder = len(self.subject.general), self.output
        width = self.options.window_width
        rows = 2 * min(MAX_ROWS, len(self.subject.training))
        num_log_probs = 2 * num * (self.general.num_patches(width) + 4) + rows
        cost = Cost(num_answers=2 * num, num_log_probs=num_log_probs)
        if self.in_domain is not None:
            others = len(self.subject.in_domain)
            num_log_probs = 2 * others * (len(self.general.regions) + 3)
            cost += Cost(num_answers=2 * others, num_log_probs=num_log_probs)
        for name, grid in self.sampled.items():
            cost += grid.cost(folder / name)
        return cost


def _sampled(subject: Subject, general: PromptMargins, options: DiagnoseOptions) -> dict[str, Grid]:
    """Returns the grids of answers to sample."""
    patches = PatchOptions(("regions",), general.regions)
    perturb = PerturbOptions(
        default_perturbations(general.regions, ["nearest"]), num_trials=options.num_trials
    )
    panel = panel_for(subject.general, options.judges)
    asked = (subject.general, subject.tokenizer, subject.pair, panel)
    return {
        SWEEP: Grid(patches, options.request, *asked),
        PERTURBATION: Grid(perturb, replace(options.request, num_samples=1), *asked),
    }


def settings_of(subject: Subject, options: DiagnoseOptions) -> dict[str, Any]:
    """Returns all that decides the results."""
    request = options.request
    rendering = asdict(request.rendering)
    rendering.pop("batch_size")
    return {
        "models": subject.pair.identities(subject.tokenizer),
        "general": _digest([question.messages for question in subject.general]),
        "in_domain": _digest([question.messages for question in subject.in_domain]),
        "training": _digest([row.messages for row in subject.training[:MAX_ROWS]]),
        "rendering": rendering,
        "budget": options.budget,
        "sampling": [request.num_samples, options.num_trials, request.temperature],
    }


def _digest(parts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()
