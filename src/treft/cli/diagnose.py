"""`treft diagnose`: does a finetune spread, which tokens carry it, and what to do about it."""

from __future__ import annotations

import json as json_module
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from treft.cli.attribute_models import Asked, ModelNames, need_inspect, read_questions
from treft.cli.attribute_options import QUESTIONS, Base, Domain, Split
from treft.cli.options import (
    MAX_CALLS,
    MODELS,
    Adapter,
    AllowOtherBase,
    BatchSize,
    Device,
    DryRun,
    Dtype,
    Json,
    MaxCalls,
    MaxNewTokens,
    Quantize,
    Seed,
    Template,
    TemplateKwargs,
    ThinkBlock,
    TrustRemoteCode,
    Yes,
)
from treft.cli.output import (
    confirm_calls,
    emit,
    interruptible,
    progress_bars,
    quiet_libraries,
    stdout_aside,
)
from treft.errors import ConfigError

if TYPE_CHECKING:
    from treft.answers.questions import EvalQuestion
    from treft.attribution.findings import DiagnosisResult
    from treft.data.messages import Conversation


FULL = "With --budget full"

STOPPED = "finished steps are kept; the same command goes on"
STEPS = "measurements"
FINETUNE = "finetune"


def diagnose(
    output: Annotated[Path, typer.Option(help="Folder for measurements, result and report.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Finetuned model: folder, hub id, or an adapter; none: finetune --base first.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    adapter: Adapter = None,
    base: Base = None,
    train_file: Annotated[
        Path | None,
        typer.Option(help="Rows of the finetune: for λ and the cost.", rich_help_panel=MODELS),
    ] = None,
    sft_options: Annotated[
        str,
        typer.Option(
            "--sft",
            help="Without --model: options of the plain finetune, as for treft sft.",
            rich_help_panel=MODELS,
        ),
    ] = "",
    questions: Annotated[
        str,
        typer.Option(
            help="Outside of the domain: JSONL file, shipped set, or organism.",
            rich_help_panel=QUESTIONS,
        ),
    ] = "em_general",
    in_domain: Annotated[
        str | None,
        typer.Option(
            help="In the domain: the same; default: prompts of --train-file.",
            rich_help_panel=QUESTIONS,
        ),
    ] = None,
    num: Annotated[
        int, typer.Option(help="Prompts of each, the first ones.", min=1, rich_help_panel=QUESTIONS)
    ] = 40,
    split: Split = "validation",
    domain: Domain = "finance",
    budget: Annotated[str, typer.Option(help="quick (no sampling, no judge) or full.")] = "quick",
    samples: Annotated[
        int, typer.Option(help="Answers to each prompt and patch.", min=1, rich_help_panel=FULL)
    ] = 2,
    trials: Annotated[
        int,
        typer.Option(help="Perturbed versions of each prompt.", min=1, rich_help_panel=FULL),
    ] = 5,
    temperature: Annotated[
        float, typer.Option(help="Of sampled answers.", min=0.0, rich_help_panel=FULL)
    ] = 1.0,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="Inspect model name; repeatable; default for the organism: its oracle.",
            rich_help_panel=FULL,
        ),
    ] = None,
    max_new_tokens: MaxNewTokens = 64,
    batch_size: BatchSize = 16,
    seed: Seed = 0,
    template: Template = None,
    template_kwargs: TemplateKwargs = None,
    think_block: ThinkBlock = True,
    dtype: Dtype = "auto",
    device: Device = None,
    quantize: Quantize = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_other_base: AllowOtherBase = False,
    max_calls: MaxCalls = MAX_CALLS,
    yes: Yes = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Find what carries a finetuned behaviour to other prompts, and say what to do about it.

    A diagnosis that was killed goes on where it stopped when the same command is given again.
    """
    quiet_libraries()
    need_inspect()
    from treft.attribution.diagnose import diagnose as run
    from treft.attribution.diagnosis_plan import DiagnoseOptions, DiagnosisPlan, Subject
    from treft.attribution.forcing import Rendering
    from treft.cli.conversations import read_rendering
    from treft.models.loading import LoadOptions

    how = read_rendering(template, template_kwargs, think_block)
    options = DiagnoseOptions(
        budget,  # type: ignore[arg-type]  # checked there
        Rendering(how.template_kwargs, think_block, max_new_tokens, batch_size, seed),
        num_samples=samples,
        num_trials=trials,
        temperature=temperature,
        judges=tuple(judge or ()),
    )
    training = _training(train_file)
    asked = Asked(questions, "general", num, split, domain)
    general = read_questions(asked)
    if in_domain is None:
        inside = _prompts_of(training, num)
    else:
        asked = replace(asked, source=in_domain, scope="in_domain")
        inside = read_questions(asked)
    loading = LoadOptions(dtype, device, trust_remote_code, allow_other_base, quantize)
    if model is None:
        model, base = _finetuned(base, train_file, output, sft_options), None
    names = ModelNames(model, adapter, base)
    with stdout_aside():
        tokenizer = names.tokenizer(loading, how.template)
        pair = names.load(loading, how.template)
    said = {
        "model": model,
        "adapter": adapter,
        "base": base or _base_of(pair.finetuned),
        "train_file": None if train_file is None else str(train_file),
        "questions": questions,
    }
    subject = Subject(
        pair,
        tokenizer,
        general,
        inside,
        training,
        {key: text for key, text in said.items() if text},
    )
    plan = DiagnosisPlan.of(subject, output / STEPS, options)
    print(f"{len(general)} + {len(inside)} prompts; at most: {plan.cost}", file=sys.stderr)
    if dry_run:
        return
    confirm_calls(plan.cost.total, "answers and judge calls", max_calls, yes=yes)
    with interruptible(lambda: STOPPED), progress_bars() as progress:
        result = run(plan, progress)
    _write(result, output)
    if json:
        emit(result.to_dict(), as_json=True)
    else:
        _show(result)
        typer.echo(f"{output / 'report.html'}, {output / 'diagnosis.json'}")


def _training(path: Path | None) -> tuple[Conversation, ...]:
    from treft.data.messages import load_conversations

    return () if path is None else tuple(load_conversations(path))


def _prompts_of(training: Sequence[Conversation], num: int) -> tuple[EvalQuestion, ...]:
    """The first distinct prompts of the training rows."""
    from treft.answers.questions import EvalQuestion

    found: dict[str, EvalQuestion] = {}
    for row, conversation in enumerate(training, start=1):
        first = next(
            index for index, each in enumerate(conversation.messages) if each["role"] == "user"
        )
        messages = conversation.messages[: first + 1]
        question = EvalQuestion(f"training row {row}", "training", messages)
        found.setdefault(json_module.dumps(messages, sort_keys=True), question)
        if len(found) == num:
            break
    return tuple(found.values())


def _finetuned(base: str | None, train_file: Path | None, output: Path, options: str) -> str:
    """The plain finetune that is diagnosed when there is none yet."""
    if base is None or train_file is None:
        raise ConfigError(
            "name the finetuned model (--model), or a base and rows to finetune it on first "
            "(--base, --train-file)."
        )
    folder = output / FINETUNE
    if not (folder / "adapter_config.json").is_file():
        from treft.cli.sft import main

        words = ["--model_name_or_path", base, "--train_file", str(train_file)]
        words += ["--output_dir", str(folder), "--use_peft", "--assistant_only_loss"]
        words += ["--kv_weight", "0", *shlex.split(options)]
        if any(folder.glob("checkpoint-*")):
            words += ["--resume_from_checkpoint", "true"]
        print(f"plain finetune first: treft sft {shlex.join(words)}", file=sys.stderr)
        with stdout_aside():
            main(words)
    return str(folder)


def _base_of(model: object) -> str | None:
    """The base that an adapter names."""
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        return None
    return model.peft_config[model.active_adapter].base_model_name_or_path or None


def _write(result: DiagnosisResult, output: Path) -> None:
    from treft.attribution.report import render_diagnosis
    from treft.files import write_whole

    write_whole(output / "diagnosis.json", json_module.dumps(result.to_dict(), indent=1) + "\n")
    write_whole(output / "report.html", render_diagnosis(result))


def _show(result: DiagnosisResult) -> None:
    from rich.console import Console
    from rich.table import Table

    from treft.attribution.report import headline

    console = Console()
    console.print(headline(result.diagnosis), style="bold", markup=False)
    console.print(result.diagnosis.reason, markup=False)
    shares = {**result.diagnosis.shares, **result.controls}
    if shares:
        table = Table("patch", "share of the loss regained, %", "95 % interval")
        for name, share in shares.items():
            low, high = 100 * share.low, 100 * share.high
            table.add_row(name, f"{100 * share.mean:.0f}", f"{low:.0f} to {high:.0f}")
        console.print(table)
    for name, other in result.others.items():
        console.print(f"By {name}: {headline(other)} {other.reason}", markup=False)
    for line in (*result.recommendation.reasons, *result.notes):
        console.print(line, markup=False)
    if result.command:
        console.print("Next:", style="bold")
        typer.echo(result.command)
