"""`treft diagnose`: does a finetune spread, which tokens carry it, and what to do about it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from treft.answers.questions import EvalQuestion
from treft.attribution import diagnose as diagnosing
from treft.attribution.diagnosis_plan import DiagnoseOptions, DiagnosisPlan, Subject
from treft.attribution.findings import DiagnosisResult
from treft.attribution.options import GridRequest
from treft.attribution.report import headline, render_diagnosis
from treft.cli.commands import run_sft
from treft.cli.options.attribution import Diagnose, Pair
from treft.cli.output import emit, interruptible, progress_bars, stdout_aside
from treft.cli.pairs import how, load_pair, read_questions, tokenizer_of
from treft.data.messages import Conversation, load_conversations
from treft.files import write_whole
from treft.models.adapters import is_peft
from treft.table import Table

STOPPED = "finished steps are kept; the same command goes on"
STEPS = "measurements"
FINETUNE = "finetune"


def diagnose(options: Diagnose) -> None:
    """Say what it costs, measure, and show the verdict."""
    output = options.output
    subject = _subject(options)
    plan = DiagnosisPlan.of(subject, output / STEPS, _measured(options))
    num = f"{len(subject.general)} + {len(subject.in_domain)}"
    print(f"{num} prompts; at most: {plan.cost}", file=sys.stderr)
    if options.dry_run:
        return
    options.limit.confirm(plan.cost.total, "answers and judge calls")
    with interruptible(lambda: STOPPED), progress_bars() as progress:
        result = diagnosing.diagnose(plan, progress)
    _write(result, output)
    if options.json:
        emit(result.to_dict(), as_json=True)
    else:
        _show(result)
        print(f"{output / 'report.html'}, {output / 'diagnosis.json'}")


def _measured(options: Diagnose) -> DiagnoseOptions:
    """Returns how much is measured, and how."""
    full, rendering = options.with_budget_full, how(options.rendering, options.answering)
    return DiagnoseOptions(
        cast(Any, options.budget),
        GridRequest(rendering, full.samples, full.temperature),
        num_trials=full.trials,
        judges=full.judge,
    )


def _subject(options: Diagnose) -> Subject:
    """Models and prompts; a plain finetune comes first where no model is named."""
    rows, loading = options.train_file, options.loading
    training = () if rows is None else tuple(load_conversations(rows))
    asked = options.asked
    general = read_questions(asked, "general", asked.num)
    if asked.in_domain is None:
        in_domain = _prompts_of(training, asked.num)
    else:
        inside = replace(asked, questions=asked.in_domain)
        in_domain = read_questions(inside, "in_domain", asked.num)
    template = options.rendering.template_text()
    if options.model is None:
        named = _finetuned(options)
    else:
        named = Pair(model=options.model, adapter=options.adapter, base=options.base)
    with stdout_aside():
        tokenizer = tokenizer_of(named, loading, template)
        pair = load_pair(named, loading, template)
    said = {
        "model": named.model,
        "adapter": named.adapter,
        "base": named.base or _base_of(pair.finetuned),
        "train_file": None if rows is None else str(rows),
        "questions": asked.questions,
    }
    origin = {key: text for key, text in said.items() if text}
    return Subject(pair, tokenizer, general, in_domain, training, origin)


def _prompts_of(training: Sequence[Conversation], num: int) -> tuple[EvalQuestion, ...]:
    """Returns the first distinct prompts of the training rows."""
    found: dict[str, EvalQuestion] = {}
    for row, conversation in enumerate(training, start=1):
        first = next(
            index for index, each in enumerate(conversation.messages) if each["role"] == "user"
        )
        messages = conversation.messages[: first + 1]
        question = EvalQuestion(f"training row {row}", "training", messages)
        found.setdefault(json.dumps(messages, sort_keys=True), question)
        if len(found) == num:
            break
    return tuple(found.values())


def _finetuned(options: Diagnose) -> Pair:
    """The plain finetune that is diagnosed when there is none yet."""
    folder = options.output / FINETUNE
    if not (folder / "adapter_config.json").is_file():
        words = ["--model_name_or_path", str(options.base), "--train_file", str(options.train_file)]
        words += ["--output_dir", str(folder), "--use_peft", "--assistant_only_loss"]
        words += ["--kv_weight", "0", *shlex.split(options.sft_options)]
        if any(folder.glob("checkpoint-*")):
            words += ["--resume_from_checkpoint", "true"]
        print(f"plain finetune first: treft sft {shlex.join(words)}", file=sys.stderr)
        with stdout_aside():
            run_sft(words)
    return Pair(model=str(folder), adapter=options.adapter)


def _base_of(model: Any) -> str | None:
    """Returns the base that an adapter names."""
    if not is_peft(model):
        return None
    return model.peft_config[model.active_adapter].base_model_name_or_path or None


def _write(result: DiagnosisResult, output: Path) -> None:
    write_whole(output / "diagnosis.json", json.dumps(result.to_dict(), indent=1) + "\n")
    write_whole(output / "report.html", render_diagnosis(result))


def _show(result: DiagnosisResult) -> None:
    console = Console()
    console.print(headline(result.diagnosis), style="bold", markup=False)
    console.print(result.diagnosis.reason, markup=False)
    shares = {**result.diagnosis.shares, **result.controls}
    if shares:
        rows = [
            (name, f"{100 * one.mean:.0f}", f"{100 * one.low:.0f} to {100 * one.high:.0f}")
            for name, one in shares.items()
        ]
        Table.of(("patch", "share of the loss regained, %", "95 % interval"), rows).show(console)
    for name, other in result.others.items():
        console.print(f"By {name}: {headline(other)} {other.reason}", markup=False)
    for line in (*result.recommendation.reasons, *result.notes):
        console.print(line, markup=False)
    if result.command:
        console.print("Next:", style="bold")
        print(result.command)
