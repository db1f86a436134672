"""`treft generate`: answer one prompt or a file of conversations, repaired by patching or not."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from treft.cli.options import (
    ANSWERS,
    MODELS,
    Adapter,
    AllowOtherBase,
    BatchSize,
    Device,
    Dtype,
    Input,
    Json,
    MaxNewTokens,
    Overwrite,
    Prompt,
    Seed,
    System,
    Temperature,
    Template,
    TemplateKwargs,
    ThinkBlock,
    Tools,
    TrustRemoteCode,
    split_names,
)
from treft.cli.output import (
    claim_file,
    emit,
    interruptible,
    progress_bars,
    quiet_libraries,
    stdout_aside,
)
from treft.errors import ConfigError
from treft.files import write_whole

if TYPE_CHECKING:
    from treft.chat.regions import RegionName
    from treft.cli.answering import PartialFile, Sampling
    from treft.cli.repair import Repair


REPAIR = "Repair"


def generate(
    model: Annotated[
        str,
        typer.Option(help="Folder or hub id; an adapter works, too.", rich_help_panel=MODELS),
    ],
    adapter: Adapter = None,
    prompt: Prompt = None,
    system: System = None,
    input: Input = None,
    tools: Tools = None,
    template: Template = None,
    template_kwargs: TemplateKwargs = None,
    think_block: ThinkBlock = True,
    patch: Annotated[
        list[str] | None,
        typer.Option(
            help="prefix, postfix, query, or several: prefix,postfix.",
            callback=split_names,
            rich_help_panel=REPAIR,
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="Unfinetuned model to patch from; default: adapter off.", rich_help_panel=REPAIR
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="File of `treft reference record` to patch from.", rich_help_panel=REPAIR
        ),
    ] = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Nucleus.", min=0.0, max=1.0, rich_help_panel=ANSWERS)
    ] = 1.0,
    num_samples: Annotated[
        int, typer.Option(help="Answers to each prompt.", min=1, rich_help_panel=ANSWERS)
    ] = 1,
    seed: Seed = 0,
    batch_size: BatchSize = 16,
    dtype: Dtype = "auto",
    device: Device = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_other_base: AllowOtherBase = False,
    output: Annotated[
        Path | None, typer.Option(help="JSONL file to write; an interrupted run goes on.")
    ] = None,
    overwrite: Overwrite = False,
    stream: Annotated[
        bool, typer.Option("--stream", help="Print the one answer while it is generated.")
    ] = False,
    json: Json = False,
) -> None:
    """Answer with a model, by choice with the unfinetuned model's keys and values in its cache."""
    quiet_libraries()
    from treft.cli.answering import Answering, PartialFile, Sampling
    from treft.cli.conversations import read_conversations, read_rendering, render, up_to_last_query
    from treft.cli.repair import Repair
    from treft.models.loading import LoadOptions, load_tokenizer

    regions = cast("tuple[RegionName, ...]", tuple(dict.fromkeys(patch or ())))
    repair = Repair(model, adapter, regions, base, reference)
    answering = Answering(
        up_to_last_query(read_conversations(prompt, system, input, tools), input),
        read_rendering(template, template_kwargs, think_block),
        Sampling(max_new_tokens, temperature, top_p, num_samples, seed),
        batch_size,
    )
    rendering = answering.rendering
    if stream and (json or output is not None or answering.num_answers > 1):
        raise ConfigError("--stream prints one answer: drop --json, --output or further prompts.")
    options = LoadOptions(dtype, device, trust_remote_code, allow_other_base)
    partial = None
    if output is not None:
        claim_file(output, overwrite=overwrite)
        partial = PartialFile(output, repair, options, answering)
    finished = [] if partial is None else partial.read()
    with stdout_aside():
        tokenizer = load_tokenizer(model, options, rendering.template, adapter)
        chats = render(tokenizer, answering.prompts, rendering, input, regions)
        repaired = repair.load(options, rendering.template, repair.load_bank(options, chats))
    if stream:
        answering.stream(repaired)
        return
    with interruptible(lambda: _kept(finished, partial)), progress_bars() as progress:
        answers = answering.run(repaired, progress, finished, partial)
    records = answering.records(answers)
    if output is not None and partial is not None:
        lines = [json_module.dumps(record, ensure_ascii=False) for record in records]
        write_whole(output, "\n".join(lines) + "\n")
        partial.remove()
    if json:
        emit(_result(repair, answering.sampling, output, records), as_json=True)
    else:
        _show(records, output)


def _kept(finished: list[list[str]], partial: PartialFile | None) -> str:
    kept = sum(map(len, finished)) if partial is not None else 0
    return f"{kept} answers are kept; the same command goes on" if kept else "no answer is kept"


def _result(
    repair: Repair, sampling: Sampling, output: Path | None, records: list[dict[str, Any]]
) -> dict[str, Any]:
    """The documented JSON object (docs/cli.md)."""
    return {
        "command": "generate",
        "model": repair.model,
        "adapter": repair.adapter,
        "patched": list(repair.regions),
        "base": repair.base,
        "reference": None if repair.reference is None else str(repair.reference),
        **asdict(sampling),
        "output": None if output is None else str(output),
        "answers": records,
    }


def _show(records: list[dict[str, Any]], output: Path | None) -> None:
    """A single answer as it is; several after the words that they answer."""
    if output is not None:
        typer.echo(f"{len(records)} answers in {output}", err=True)
        return
    for record in records:
        if len(records) > 1:
            typer.echo(f"> {record['messages'][-1]['content']}")
        typer.echo(record["answer"] + "\n" * (len(records) > 1))
