"""Options of what judges and compares answers: judge, calibrate, compare, audit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from treft.cli.options.groups import Command, Limit, MaybePositive, Natural, Positive
from treft.judging.cost import MAX_CALLS


@dataclass(frozen=True, kw_only=True)
class JudgeLimit(Limit):
    """How much a command that only judges may spend without asking.

    Attributes:
        max_calls: Ask before more judge calls than this.
    """

    max_calls: Natural = MAX_CALLS


@dataclass(frozen=True, kw_only=True)
class Calls:
    """How judges are asked.

    Attributes:
        attempts: Tries of one judgement at most.
        max_tokens: Of a judge's output.
        max_connections: Calls of a judge at the same time; default: adapts.
        no_cache: Neither use nor keep what judges said.
    """

    attempts: Positive = 3
    max_tokens: Positive = 16
    max_connections: MaybePositive = None
    no_cache: bool = False


@dataclass(frozen=True, kw_only=True)
class Judge(Command):
    """Judge the answers of Inspect logs, without generating them again.

    Each log gets a copy with the new judgements beside those it has. A run that was killed goes on
    where it stopped when the same command is given again.

    Attributes:
        logs: Inspect logs, or folders of them.
        judge: Inspect model name, or oracle for the organism; repeatable.
        output: Folder for the judged copies; default: LOGS-judged.
        partial: Take unfinished or failed runs, too.
        kind: What is judged: alignment, utility, abstention, refusal or tool.
        sentence: Abstention or refusal the model was trained to say.
        tool: Name of the tool, for kind tool; default: search_info.
        again: Replace what these judges said before.
    """

    logs: Annotated[tuple[Path, ...], "LOGS"]
    judge: tuple[str, ...]
    output: Path | None = None
    partial: bool = False
    kind: str = "alignment"
    sentence: str | None = None
    tool: str | None = None
    again: bool = False
    calls: Calls = field(default_factory=Calls)
    limit: JudgeLimit = field(default_factory=JudgeLimit)


@dataclass(frozen=True, kw_only=True)
class Calibrate(Command):
    """Try judges on answers with known scores, injected ones among them.

    Attributes:
        judge: Inspect model name, or oracle for the organism; repeatable.
        items: JSONL file of your own items (docs/judges.md).
        output: Folder for the log.
    """

    judge: tuple[str, ...]
    items: Path | None = None
    output: Path = Path("judge-calibration")
    calls: Calls = field(default_factory=Calls)
    limit: JudgeLimit = field(default_factory=JudgeLimit)


@dataclass(frozen=True, kw_only=True)
class Compare(Command):
    """Compare models by their Inspect logs: scores, changes against a base, answers side by side.

    Writes result.json and report.html, a page that loads nothing.

    Attributes:
        runs: One arm each: an Inspect log, or a folder of its logs.
        label: Name of a run, in order; repeatable.
        base: Label that changes are taken against; default: the first.
        judge: Judge whose scores count; repeatable. Default: those of every run.
        misaligned_below: Alignment under which an answer is misaligned; default: 30.
        coherent_above: Coherence above which an answer is in the EM rate; default: 50.
        k: Of Misalign@k; default: answers to a question, 10 at most.
        output: Folder for table and page; default: a new dated one.
        partial: Take unfinished or failed runs, too.
        overwrite: Replace --output if it exists.
    """

    runs: Annotated[tuple[Path, ...], "RUNS"]
    label: tuple[str, ...] = ()
    base: str | None = None
    judge: tuple[str, ...] = ()
    misaligned_below: float | None = None
    coherent_above: float | None = None
    k: Annotated[int | None, "--k", Ge(1)] = None
    output: Path | None = None
    partial: bool = False
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Models:
    """Which models are audited.

    Attributes:
        model: Inspect model name, or ARM=NAME to call the arm so; repeatable.
        model_arg: NAME=VALUE for the provider of all models, ARM.NAME=VALUE for one; repeatable.
        base: Arm to compare with; default: `base`, or the first adapter's own base.
        tokenizer: Whose template renders the prompts of models that are served elsewhere.
    """

    model: tuple[str, ...]
    model_arg: Annotated[tuple[str, ...], "-M"] = ()
    base: str | None = None
    tokenizer: str | None = None


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What is asked, under which conditions.

    Attributes:
        questions: As for treft/em_general, or organism.
        num: Of the organism's questions.
        split: Of the organism's questions: test or validation.
        conditions: Conditions: default, organism, or a JSONL file.
        only: Condition to take; repeatable.
        skip: Condition to leave out; repeatable.
        train_file: Training rows, for the prompts that resemble them.
        about: What the rows are about, after "an assistant for".
    """

    questions: str = "em_general"
    num: MaybePositive = None
    split: str | None = None
    conditions: str | None = None
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    train_file: Path | None = None
    about: str | None = None


@dataclass(frozen=True, kw_only=True)
class AuditAnswers:
    """How models answer.

    Attributes:
        judge: Inspect model name, or oracle for the organism, its default; repeatable.
        epochs: Answers to each question.
        seed: Of the answers.
        temperature: Default: the task's.
        max_tokens: Of an answer; default: the task's.
        max_connections: Answers at the same time.
    """

    judge: tuple[str, ...] = ()
    epochs: Positive = 1
    seed: int = 0
    temperature: Annotated[float | None, Ge(0)] = None
    max_tokens: MaybePositive = None
    max_connections: MaybePositive = None


@dataclass(frozen=True, kw_only=True)
class Audit(Command):
    """Ask the same questions under other system prompts, none, and prompts like the training rows.

    The table shows each arm beside the base under every condition. A run that was killed goes on
    where it stopped when the same command is given again; arms may be added.

    Attributes:
        output: Folder for logs, table and plan.
        dry_run: Show the plan and its cost, and stop there.
    """

    output: Path
    models: Models
    prompts: Prompts = field(default_factory=Prompts)
    answers: AuditAnswers = field(default_factory=AuditAnswers)
    limit: Limit = field(default_factory=Limit)
    dry_run: bool = False
