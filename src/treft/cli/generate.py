"""`treft generate`: answer one prompt or a file of conversations, repaired by patching or not."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from treft.cli.options import (
    LOADING,
    Device,
    Dtype,
    Input,
    Json,
    Overwrite,
    Prompt,
    System,
    Template,
    TemplateKwargs,
    ThinkBlock,
    Tools,
    TrustRemoteCode,
)
from treft.cli.output import claim_file, emit, progress_bars, quiet_libraries
from treft.errors import ConfigError
from treft.files import write_whole

if TYPE_CHECKING:
    from treft.cli.answering import PartialFile, Sampling
    from treft.data import Conversation
    from treft.generation import RepairedModel
    from treft.loading import LoadOptions
    from treft.regions import RegionName

__all__ = ["generate"]

REPAIR = "Repair"
SAMPLING = "Answers"
EXIT_INTERRUPTED = 130
PATCHABLE = ("prefix", "postfix", "query")


def generate(
    model: Annotated[str, typer.Option(help="Folder or hub id; an adapter works, too.")],
    adapter: Annotated[str | None, typer.Option(help="Adapter to put on the model.")] = None,
    prompt: Prompt = None,
    system: System = None,
    input: Input = None,
    tools: Tools = None,
    template: Template = None,
    template_kwargs: TemplateKwargs = None,
    think_block: ThinkBlock = True,
    patch: Annotated[
        list[str] | None,
        typer.Option(help="prefix, postfix or query; repeatable.", rich_help_panel=REPAIR),
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
    max_new_tokens: Annotated[
        int, typer.Option(help="Cap of an answer.", min=1, rich_help_panel=SAMPLING)
    ] = 256,
    temperature: Annotated[
        float, typer.Option(help="0 is greedy.", min=0.0, rich_help_panel=SAMPLING)
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Nucleus.", min=0.0, max=1.0, rich_help_panel=SAMPLING)
    ] = 1.0,
    num_samples: Annotated[
        int, typer.Option(help="Answers to each prompt.", min=1, rich_help_panel=SAMPLING)
    ] = 1,
    seed: Annotated[int, typer.Option(help="Of sampling.", min=0, rich_help_panel=SAMPLING)] = 0,
    batch_size: Annotated[
        int, typer.Option(help="Prompts run together.", min=1, rich_help_panel=SAMPLING)
    ] = 16,
    dtype: Dtype = "auto",
    device: Device = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_other_base: Annotated[
        bool,
        typer.Option(
            "--allow-other-base",
            help="Put the adapter on a base that is not the one it names.",
            rich_help_panel=LOADING,
        ),
    ] = False,
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
    from treft.cli.conversations import read_conversations, read_rendering
    from treft.loading import LoadOptions

    origin = _Origin(model, adapter, tuple(patch or ()), base, reference)
    answering = Answering(
        _prompts(read_conversations(prompt, system, input, tools), input),
        read_rendering(template, template_kwargs, think_block),
        Sampling(max_new_tokens, temperature, top_p, num_samples, seed),
        batch_size,
    )
    if stream and (json or output is not None or answering.num_answers > 1):
        raise ConfigError("--stream prints one answer: drop --json, --output or further prompts.")
    options = LoadOptions(dtype, device, trust_remote_code, allow_other_base)
    partial = None
    if output is not None:
        claim_file(output, overwrite=overwrite)
        partial = PartialFile(output, origin, options, answering)
    finished = [] if partial is None else partial.read()
    repaired = origin.load(options, answering.rendering.template)
    if stream:
        answering.stream(repaired)
        return
    try:
        with progress_bars() as progress:
            answers = answering.run(repaired, progress, finished, partial)
    except KeyboardInterrupt:
        _say_stopped(finished, partial)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    records = answering.records(answers)
    if output is not None and partial is not None:
        lines = [json_module.dumps(record, ensure_ascii=False) for record in records]
        write_whole(output, "\n".join(lines) + "\n")
        partial.remove()
    if json:
        emit(_result(origin, answering.sampling, output, records), as_json=True)
    else:
        _show(records, output)


@dataclass(frozen=True)
class _Origin:
    """Which model answers, and what it is patched from."""

    model: str
    adapter: str | None
    regions: tuple[str, ...]
    base: str | None
    reference: Path | None

    def __post_init__(self) -> None:
        if unknown := [region for region in self.regions if region not in PATCHABLE]:
            raise ConfigError(f"--patch is one of {', '.join(PATCHABLE)}, not {unknown[0]}.")
        if self.base is not None and self.reference is not None:
            raise ConfigError("give one of --base and --reference: what to patch from.")
        if not self.regions and (self.base is not None or self.reference is not None):
            raise ConfigError("--base and --reference are what to patch from: name a --patch.")

    def load(self, options: LoadOptions, template: str | None) -> RepairedModel:
        """The model, with what it is patched from."""
        from treft.generation import RepairedModel, patch
        from treft.loading import load_model
        from treft.reference import ReferenceBank
        from treft.states import pretrained_model

        source: Any = None
        if self.reference is not None:  # first, since it is quickly found to be wrong
            source = ReferenceBank.load(self.reference, options.torch_device)
        loaded, tokenizer = load_model(self.model, self.adapter, options, template)
        if not self.regions:
            return RepairedModel(loaded, tokenizer, None, ())
        if self.base is not None:
            # In the precision of the finetuned model, however the base was saved.
            dtype = str(pretrained_model(loaded).dtype).removeprefix("torch.")
            source = load_model(self.base, None, replace(options, dtype=dtype), template)[0]
        elif source is None:
            self._need_adapter(loaded)
        regions = cast("tuple[RegionName, ...]", self.regions)
        return patch(loaded, tokenizer, regions, reference=source)

    def _need_adapter(self, loaded: Any) -> None:
        from treft.reference import adapter_off

        try:
            adapter_off(loaded)
        except ConfigError as error:
            raise ConfigError(
                f"{self.model} has no adapter that could be switched off to patch from: name the "
                "unfinetuned model (--base), or a recorded reference (--reference)."
            ) from error


def _prompts(conversations: list[Conversation], file: Path | None) -> list[Conversation]:
    """What is to be answered: each conversation up to its last query."""
    from treft.cli.conversations import up_to_last_query

    return [
        replace(found, messages=tuple(up_to_last_query(found.messages, f"{file}, row {number}")))
        for number, found in enumerate(conversations, start=1)
    ]


def _say_stopped(finished: list[list[str]], partial: PartialFile | None) -> None:
    kept = sum(map(len, finished)) if partial is not None else 0
    text = f"{kept} answers are kept; the same command goes on" if kept else "no answer is kept"
    typer.echo(f"stopped: {text}", err=True)


def _result(
    origin: _Origin, sampling: Sampling, output: Path | None, records: list[dict[str, Any]]
) -> dict[str, Any]:
    """The documented JSON object (docs/cli.md)."""
    return {
        "command": "generate",
        "model": origin.model,
        "adapter": origin.adapter,
        "patched": list(origin.regions),
        "base": origin.base,
        "reference": None if origin.reference is None else str(origin.reference),
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
