"""`treft attribute signals`: drift, size and margins of a finetune; no sampling, no judge."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from treft.cli.attribute_models import Asked, ModelNames, need_inspect, read_questions
from treft.cli.attribute_options import QUESTIONS, Base, Domain, Model, Num, Questions, Split
from treft.cli.options import (
    ANSWERS,
    Adapter,
    AllowOtherBase,
    BatchSize,
    Device,
    Dtype,
    Json,
    MaxNewTokens,
    Overwrite,
    Quantize,
    Seed,
    Temperature,
    Template,
    TemplateKwargs,
    ThinkBlock,
    TrustRemoteCode,
    split_names,
)
from treft.cli.output import claim_file, emit, progress_bars, quiet_libraries, stdout_aside
from treft.errors import ConfigError, TemplateError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from treft.answers.questions import EvalQuestion
    from treft.attribution.margins import AnswerPair
    from treft.attribution.signals import Signals
    from treft.core.patch_spec import PatchSpec


def signals(
    model: Model,
    adapter: Adapter = None,
    base: Base = None,
    questions: Questions = "em_general",
    scope: Annotated[
        str,
        typer.Option(help="Of the organism: general or in_domain.", rich_help_panel=QUESTIONS),
    ] = "general",
    num: Num = None,
    split: Split = "validation",
    domain: Domain = "finance",
    answers: Annotated[
        Path | None,
        typer.Option(
            help="JSONL of id, aligned, misaligned; default: both models' own answers.",
            rich_help_panel=ANSWERS,
        ),
    ] = None,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    max_new_tokens: MaxNewTokens = 64,
    regions: Annotated[
        str, typer.Option(help="Patched and compared, with commas between.")
    ] = "prefix,query,postfix",
    batch_size: BatchSize = 16,
    template: Template = None,
    template_kwargs: TemplateKwargs = None,
    think_block: ThinkBlock = True,
    dtype: Dtype = "auto",
    device: Device = None,
    quantize: Quantize = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_other_base: AllowOtherBase = False,
    output: Annotated[
        Path | None, typer.Option(help="JSON file with all of it, prompt by prompt.")
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Show where a finetune moved keys and values, and what patches do to its preferences.

    Seconds instead of minutes, and no judge: answers are given, not sampled. docs/attribution.md
    says what each signal is worth.
    """
    quiet_libraries()
    need_inspect()
    from treft.attribution.forcing import Rendering, render_questions
    from treft.attribution.patches import region_specs
    from treft.attribution.signals import measure_signals, read_pairs
    from treft.cli.conversations import read_rendering
    from treft.models.loading import LoadOptions

    if quantize is not None and base is not None:
        raise ConfigError(
            "how much a full finetune changed cannot be told from quantised weights: leave out "
            "--quantize, or take treft diagnose, which leaves out ‖ΔW‖."
        )
    names = ModelNames(model, adapter, base)
    chosen: Any = dict.fromkeys(split_names([regions]))  # checked there
    specs = region_specs(chosen)
    rendering = read_rendering(template, template_kwargs, think_block)
    options = LoadOptions(dtype, device, trust_remote_code, allow_other_base, quantize)
    if output is not None:
        claim_file(output, overwrite=overwrite)
    asked = read_questions(Asked(questions, scope, num, split, domain))
    pairs = None if answers is None else read_pairs(answers, asked)
    how = Rendering(
        rendering.template_kwargs or {},
        rendering.include_think_block,
        max_new_tokens,
        batch_size,
        seed,
    )
    with stdout_aside():
        tokenizer = names.tokenizer(options, rendering.template)
        _check_regions(render_questions(tokenizer, asked, **how.of_chats), asked, specs)
        models = names.load(options, rendering.template)
    with progress_bars() as progress:
        if pairs is None:
            from treft.attribution.margins import answer_pairs

            pairs = answer_pairs(
                models,
                tokenizer,
                asked,
                how,
                temperature=temperature,
                on_batch=lambda done: progress("answering", done, 2 * len(asked)),
            )
        num_differing = sum(not pair.is_alike for pair in pairs)
        found = measure_signals(
            models,
            tokenizer,
            pairs,
            specs,
            how,
            on_batch=lambda done: progress("margins", done, num_differing),
        )
    result = {"command": "attribute signals", **asdict(names), **found.to_dict()}
    if output is not None:
        _write(output, result, pairs, found)
    if json:
        emit(result, as_json=True)
    else:
        _show(found)


def _check_regions(
    chats: Sequence[Any], questions: Sequence[EvalQuestion], specs: Sequence[PatchSpec]
) -> None:
    """Before any model is loaded."""
    for chat, question in zip(chats, questions, strict=True):
        for spec in specs:
            for region in spec.regions:
                try:
                    chat.require(region)
                except TemplateError as error:
                    raise TemplateError(f"question {question.id!r}: {error}") from error


def _write(path: Path, result: dict[str, Any], pairs: Sequence[AnswerPair], found: Signals) -> None:
    """The result, and every prompt's answers, margins and drift by token."""
    from treft.files import write_whole

    drift = found.drift
    prompts = [
        {
            "id": pair.question.id,
            "base_answer": pair.base_answer,
            "finetuned_answer": pair.finetuned_answer,
            "alike": pair.is_alike,
            "base": found.margins.base[row],
            "finetuned": found.margins.finetuned[row],
            "patched": {name: values[row] for name, values in found.margins.patched.items()},
            "tokens": drift.labels[row],
            "drift": (drift.key[row] + drift.value[row]).mean(axis=0).tolist(),
        }
        for row, pair in enumerate(pairs)
    ]
    text = json_module.dumps({**result, "prompts": prompts}, ensure_ascii=False, indent=1)
    write_whole(path, text + "\n")


def _show(found: Signals) -> None:
    from rich.console import Console

    console = Console()
    console.print(_drift_table(found))
    scale = found.scales.scale
    console.print(
        "drift of eq. (2), K / V: mean over tokens and prompts; L_KV of eq. (3); "
        + ("no single adapter scale" if scale is None else f"adapter scale {scale:g}")
        + f"; ‖ΔW‖ of all weights {found.scales.norm():.3g}",
        markup=False,
    )
    if found.drift.is_zero:
        console.print("no key or value differs from the base's: no patch of them can do anything.")
    console.print(_margin_table(found))
    margins = found.margins
    console.print(
        f"{len(margins.questions)} prompts; base and finetuned model answer {margins.num_alike} of "
        "them alike, which carry no signal and count as 0; 95 % intervals by bootstrap over them",
        markup=False,
    )


def _drift_table(found: Signals) -> Any:
    from rich.table import Table

    from treft.attribution.weights import KEY_VALUE_PROJECTIONS

    layers = found.drift.layers
    shown = Table(title="drift of keys / values")
    for heading in ("region", *(f"layer {layer}" for layer in layers), "L_KV", "L_KV / scale²"):
        shown.add_column(heading)
    for region in found.drift.regions:
        key, value = (part.mean(axis=0) for part in found.drift.region(region))
        total = float((key + value).mean())
        ratio = found.normalised(total)
        cells = (f"{k:.2g} / {v:.2g}" for k, v in zip(key, value, strict=True))
        shown.add_row(region, *cells, f"{total:.3g}", "" if ratio is None else f"{ratio:.3g}")
    norms = (f"{found.scales.norm(layer, KEY_VALUE_PROJECTIONS):.3g}" for layer in layers)
    shown.add_row("‖ΔW‖ of K, V", *norms, "", "")
    return shown


def _margin_table(found: Signals) -> Any:
    from rich.table import Table

    shown = Table(title="margin: whose answer is preferred, nats a token")
    for heading in ("model", "margin", "share of the loss regained, %"):
        shown.add_column(heading)
    margins = found.margins
    loss = margins.loss().interval
    shown.add_row("base", f"{margins.base.mean():.3f}", "")
    lost = f"loss {loss.mean:.3f} [{loss.low:.3f}, {loss.high:.3f}]"
    shown.add_row("finetuned", f"{margins.finetuned.mean():.3f}", lost)
    for spec in found.specs:
        share = margins.share(spec.name)
        text = "no loss to regain"
        if share is not None:
            mean, low, high = (round(100 * end) for end in share)
            text = f"{mean} [{low}, {high}]"
        shown.add_row(f"patched: {spec.name}", f"{margins.patched[spec.name].mean():.3f}", text)
    return shown
