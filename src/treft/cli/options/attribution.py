"""Options of what asks a finetuned model beside its base: attribute, diagnose."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from treft.chat import PATCHABLE
from treft.cli.options.groups import (
    Answering,
    Command,
    Limit,
    MaybePositive,
    Positive,
    Rendering,
    Temperature,
    WritesFile,
    split_names,
)
from treft.errors import ConfigError
from treft.models.load_options import LoadOptions


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A finetuned model and its base.

    Attributes:
        model: Finetuned model: folder, hub id, or an adapter.
        adapter: Adapter to put on the model.
        base: Unfinetuned model; default: the adapter switched off.
    """

    model: str
    adapter: str | None = None
    base: str | None = None


@dataclass(frozen=True, kw_only=True)
class QuestionSource:
    """Where questions come from.

    Attributes:
        questions: JSONL file, shipped set, or organism.
        split: Of the organism's questions: test or validation.
        domain: That the organism was finetuned on.
    """

    questions: str = "em_general"
    split: str = "validation"
    domain: str = "finance"


@dataclass(frozen=True, kw_only=True)
class Questions(QuestionSource):
    """Which questions are asked.

    Attributes:
        scope: general or in_domain: where answers count; of the organism, which are drawn.
        num: Questions, the first ones; default: all (of the organism's 200).

    Raises:
        ConfigError: there is no such scope, or nothing would be asked.
    """

    scope: str = "general"
    num: int | None = None

    def __post_init__(self) -> None:
        """Validate before anything is loaded."""
        if self.scope not in ("general", "in_domain"):
            raise ConfigError(f"--scope is general or in_domain, not {self.scope!r}.")
        if self.num is not None and self.num < 1:
            raise ConfigError(f"--num is {self.num}; ask at least one question.")


@dataclass(frozen=True, kw_only=True)
class GridAnswers(Answering):
    """How answers are drawn and judged.

    Attributes:
        samples: Answers to each prompt.
        temperature: 0 is greedy.
        judge: Inspect model name, or oracle for the organism, its default; repeatable.
    """

    samples: Positive = 1
    temperature: Temperature = 1.0
    max_new_tokens: Positive = 256
    batch_size: Positive = 32
    judge: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GridCommand(Command):
    """Questions answered by both models under many changes.

    Attributes:
        output: Folder for prompts, answers and table.
        region: prefix, query, postfix, or several: prefix,query; default: all.
    """

    output: Path
    models: Pair
    questions: Questions = field(default_factory=Questions)
    region: tuple[str, ...] = ()
    answers: GridAnswers = field(default_factory=GridAnswers)
    rendering: Rendering = field(default_factory=Rendering)
    loading: LoadOptions = field(default_factory=LoadOptions)
    limit: Limit = field(default_factory=Limit)

    @property
    def regions(self) -> tuple[str, ...]:
        """All that are changed."""
        return split_names(self.region or PATCHABLE)


@dataclass(frozen=True, kw_only=True)
class Patch(GridCommand):
    """Answer with the base's keys and values at one part of the prompt at a time.

    Where alignment returns, those tokens, layers or kinds carry the behaviour. A run that was
    killed goes on where it stopped when the same command is given again; specs may be added.

    Attributes:
        specs: regions (always), kinds, windows, layers or curve; repeatable.
        window_width: Tokens of a window.
        window_stride: Tokens from a window to the next; default: its width.
        band_width: Layers of a band; default: a quarter of all.
        dry_run: Show the plan and its cost, and stop there.
    """

    specs: tuple[str, ...] = ()
    window_width: Positive = 4
    window_stride: MaybePositive = None
    band_width: MaybePositive = None
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class Perturb(GridCommand):
    """Replace tokens of one region at a time, and score the answers beside two controls.

    If answers are aligned again once a region is perturbed, its tokens carry the behaviour. A run
    that was killed goes on where it stopped when the same command is given again.

    Attributes:
        method: nearest or random; repeatable; default: nearest.
        rephraser: Inspect model that says queries in other words; default: none.
        num_tokens: Replaced in each prompt.
        neighbours: Of which one is drawn.
        trials: Versions of each prompt.
        special_tokens: Special tokens may give way, too (none ever comes).
        prompts: prompts.jsonl of another study, to ask the same again.
    """

    method: tuple[str, ...] = ()
    rephraser: str | None = None
    num_tokens: Positive = 10
    neighbours: Positive = 5
    trials: Positive = 10
    special_tokens: bool = False
    prompts: Path | None = None


@dataclass(frozen=True, kw_only=True)
class SignalAnswers(Answering):
    """Which answers are scored.

    Attributes:
        answers: JSONL of id, aligned, misaligned; default: both models' own answers.
        temperature: 0 is greedy.
    """

    answers: Path | None = None
    temperature: Temperature = 0.0


@dataclass(frozen=True, kw_only=True)
class Signals(WritesFile):
    """Show where a finetune moved keys and values, and what patches do to its preferences.

    Seconds instead of minutes, and no judge: answers are given, not sampled. docs/attribution.md
    says what each signal is worth.

    Attributes:
        regions: Patched and compared, with commas between.
        output: JSON file with all of it, prompt by prompt.
    """

    models: Pair
    questions: Questions = field(default_factory=Questions)
    answering: SignalAnswers = field(default_factory=SignalAnswers)
    regions: str = "prefix,query,postfix"
    rendering: Rendering = field(default_factory=Rendering)
    loading: LoadOptions = field(default_factory=LoadOptions)
    output: Path | None = None

    def __post_init__(self) -> None:
        """Validate before anything is loaded."""
        if self.loading.quantize is not None and self.models.base is not None:
            raise ConfigError(
                "how much a full finetune changed cannot be told from quantised weights: leave out "
                "--quantize, or take treft diagnose, which leaves out ‖ΔW‖."
            )
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class DiagnosisQuestions(QuestionSource):
    """What is asked outside and inside the finetune's domain.

    Attributes:
        questions: Outside of the domain: JSONL file, shipped set, or organism.
        in_domain: In the domain: the same; default: prompts of --train-file.
        num: Prompts of each, the first ones.
    """

    in_domain: str | None = None
    num: Positive = 40


@dataclass(frozen=True, kw_only=True)
class WithBudgetFull:
    """What a full diagnosis does besides.

    Attributes:
        samples: Answers to each prompt and patch.
        trials: Perturbed versions of each prompt.
        temperature: Of sampled answers.
        judge: Inspect model name; repeatable; default for the organism: its oracle.
    """

    samples: Positive = 2
    trials: Positive = 5
    temperature: Temperature = 1.0
    judge: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Diagnose(Command):
    """Find what carries a finetuned behaviour to other prompts, and say what to do about it.

    A diagnosis that was killed goes on where it stopped when the same command is given again.

    Attributes:
        output: Folder for measurements, result and report.
        model: Finetuned model: folder, hub id, or an adapter; none: finetune --base first.
        adapter: Adapter to put on the model.
        base: Unfinetuned model; default: the adapter switched off.
        train_file: Rows of the finetune: for λ and the cost.
        sft_options: Without --model: options of the plain finetune, as for treft sft.
        budget: quick (no sampling, no judge) or full.
        dry_run: Show the plan and its cost, and stop there.
    """

    output: Path
    model: str | None = None
    adapter: str | None = None
    base: str | None = None
    train_file: Path | None = None
    sft_options: Annotated[str, "--sft"] = ""
    budget: str = "quick"
    asked: DiagnosisQuestions = field(default_factory=DiagnosisQuestions)
    with_budget_full: WithBudgetFull = field(default_factory=WithBudgetFull)
    answering: Answering = field(default_factory=Answering)
    rendering: Rendering = field(default_factory=Rendering)
    loading: LoadOptions = field(default_factory=LoadOptions)
    limit: Limit = field(default_factory=Limit)
    dry_run: bool = False

    def __post_init__(self) -> None:
        """Validate before anything is loaded."""
        if self.budget not in ("quick", "full"):
            raise ConfigError(f"budget is quick or full, not {self.budget!r}.")
        if self.with_budget_full.judge and self.budget == "quick":
            raise ConfigError("a quick diagnosis asks no judge: take --budget full.")
        if self.model is None and (self.base is None or self.train_file is None):
            raise ConfigError(
                "name the finetuned model (--model), or a base and rows to finetune it on first "
                "(--base, --train-file)."
            )
