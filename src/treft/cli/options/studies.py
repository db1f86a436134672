"""Options of studies of the organism or of a real model: study, demo."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from treft.cli.options.groups import Command, MaybePositive, Positive
from treft.cli.options.judging import JudgeLimit
from treft.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RealModel:
    """A real model instead of the organism, and what its studies need.

    Attributes:
        model: Folder or hub id of a model to study instead of the organism.
        train_file: DOMAIN=FILE, JSONL rows of `messages` to train on; repeatable. The first is the
            domain of studies that do not name one. facts=FILE has questions and short answers.
        retain_file: DOMAIN=FILE, careful rows of another domain, of the trained one, or of none
            (general=FILE); repeatable.
        judge: Inspect model name of the judge; behaviours are seen without.
        questions: General questions: a shipped set or a JSONL file.
        strength: METHOD=NUMBER where the organism's is not right; repeatable.

    Raises:
        ConfigError: an option belongs to a model and there is none.
    """

    model: str | None = None
    train_file: tuple[str, ...] = ()
    retain_file: tuple[str, ...] = ()
    judge: str | None = None
    questions: str | None = None
    strength: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Validate before anything is planned."""
        given = (self.train_file, self.retain_file, self.judge, self.questions, self.strength)
        if self.model is None and any(given):
            raise ConfigError("training files, judge and questions go with --model: name one.")


@dataclass(frozen=True, kw_only=True)
class ListStudies(Command):
    """Names, the claims of the paper that they test, and what they cost.

    Attributes:
        names: Of studies; default: all there are.
    """

    names: Annotated[tuple[str, ...], "NAMES"] = ()


@dataclass(frozen=True, kw_only=True)
class Status(Command):
    """Which steps of studies stand in the store, and which a run would do.

    Attributes:
        names: Of one or more studies, from `treft study list`, or all.
        organism: Folder of an organism; repeatable. Default: ours.
        seeds: Finetuning seeds on each organism.
        split: Question set: test, or validation.
        settings: NAME=VALUE of the finetune's recipe; repeatable.
        store: Folder of results; shared, continued.
    """

    names: Annotated[tuple[str, ...], "NAMES"]
    organism: tuple[Path, ...] = ()
    seeds: Positive = 5
    split: str = "test"
    settings: Annotated[tuple[str, ...], "--set"] = ()
    store: Path = Path("treft-studies")
    real_model: RealModel = field(default_factory=RealModel)

    def __post_init__(self) -> None:
        """Validate before anything is planned."""
        if self.store.exists() and not self.store.is_dir():
            raise ConfigError(f"{self.store} is a file; name a folder as --store.")


@dataclass(frozen=True, kw_only=True)
class Run(Status):
    """Do what is missing of studies; show verdicts, and of a single one the table.

    Attributes:
        workers: Processes; default: one a core.
        ray: Run on a Ray cluster: its address, auto, or local to start one.
        output: New folder for a copy of table, plot and verdict; one a study in it.
        overwrite: Replace --output if it exists.
    """

    limit: JudgeLimit = field(default_factory=JudgeLimit)
    workers: MaybePositive = None
    ray: str | None = None
    output: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Validate before anything is planned."""
        super().__post_init__()
        output = self.output
        if output is not None and (output.is_file() or (output.exists() and not self.overwrite)):
            raise ConfigError(f"{output} exists: choose another --output.")


@dataclass(frozen=True, kw_only=True)
class Index(Command):
    """Write a page of all claims with what was found, from results that were kept.

    Attributes:
        results: Folder with STUDY/result.json.
        output: Markdown page to write.
        check: Write nothing; exit 1 if the page is another.
    """

    results: Annotated[Path, "RESULTS"]
    output: Path
    check: bool = False


@dataclass(frozen=True, kw_only=True)
class Demo(Command):
    """See a narrow finetune go broadly wrong, the base's prefix repair it, and TReFT prevent it.

    Runs on the embedded model organism, offline, in about three minutes a seed on two cores.

    Attributes:
        seeds: Finetuning seeds on each organism.
        arms: Comma-separated arms, or `all`.
        organism: Folder of an organism; repeatable. Default: ours.
        split: Question set: test, or validation.
        output: Folder of results; one that exists is continued.
        domain: Narrow domain of the finetune.
        max_steps: Optimizer steps of each arm.
        learning_rate: Of each arm.
        kv_weight: λ of the TReFT arms.
        temperature: Of the sampled answers.
        num_general: General questions.
        num_in_domain: In-domain questions.
    """

    seeds: int = 1
    arms: str = "default"
    organism: tuple[Path, ...] = ()
    split: str = "test"
    output: Path | None = None
    domain: str | None = None
    max_steps: int | None = None
    learning_rate: float | None = None
    kv_weight: float | None = None
    temperature: float | None = None
    num_general: int | None = None
    num_in_domain: int | None = None
