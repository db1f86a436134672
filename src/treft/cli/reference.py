"""`treft reference`: record the unfinetuned model's keys and values, and look into such a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from treft.cli.options import (
    Device,
    Dtype,
    Input,
    Json,
    Overwrite,
    System,
    Template,
    TemplateKwargs,
    ThinkBlock,
    Tools,
    TrustRemoteCode,
    split_names,
)
from treft.cli.output import claim_file, emit, progress_bars, quiet_libraries, stdout_aside
from treft.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast as Tokenizer

    from treft.chat.regions import RegionName
    from treft.core.recording import ReferenceRequest
    from treft.core.reference import ReferenceBank


app = typer.Typer(
    help="Record the unfinetuned model's keys and values, or look into a file of them.",
    no_args_is_help=True,
)
SHARED = ("prefix", "postfix")
"""Regions whose states other conversations can share."""
NUM_SHOWN = 8
"""Entries of a file that are shown to people."""
NUM_AT_ONCE = 64
"""Prompts recorded between two steps of the progress bar."""


@app.command()
def record(
    model: Annotated[str, typer.Option(help="The unfinetuned model: folder, hub id or organism.")],
    output: Annotated[Path, typer.Option(help="Safetensors file to write.")],
    adapter: Annotated[
        str | None, typer.Option(help="Adapter that the model had before this finetune.")
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(help="prefix (default), postfix, or prefix,postfix.", callback=split_names),
    ] = None,
    system: System = None,
    input: Input = None,
    tools: Tools = None,
    template: Template = None,
    template_kwargs: TemplateKwargs = None,
    think_block: ThinkBlock = True,
    dtype: Dtype = "auto",
    device: Device = None,
    trust_remote_code: TrustRemoteCode = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Record each distinct prefix (and postfix) of the rows, for repair and for training.

    Without --input, the prefix of a chat with the given system message, or the template's default
    one, is recorded. A postfix is recorded after an empty query, at each place that it has in the
    rows, and therefore needs a file.
    """
    quiet_libraries()
    from treft.chat.regions import template_hash
    from treft.cli.conversations import read_conversations, read_rendering, render
    from treft.core.conversations import region_requests
    from treft.core.identity import identify
    from treft.core.recording import other_model
    from treft.core.reference import ReferenceBank
    from treft.models.loading import LoadOptions, load_model, load_tokenizer

    names = _region_names(region, input)
    rendering = read_rendering(template, template_kwargs, think_block)
    # Any words do without a file: the prefix comes before them.
    words = "x" if input is None else None
    conversations = read_conversations(words, system, input, tools)
    options = LoadOptions(dtype, device, trust_remote_code)
    claim_file(output, overwrite=overwrite)
    with stdout_aside():
        tokenizer = load_tokenizer(model, options, rendering.template, adapter)
        chats = render(tokenizer, conversations, rendering, input, names)
        found = (region_requests(chat, name) for chat in chats for name in names)
        requests = list(dict.fromkeys(request for group in found for request in group))
        loaded, _ = load_model(model, adapter, options, rendering.template)
    before = None if adapter is None else "default"
    identity = identify(loaded, template_hash(tokenizer), adapter=before)
    bank = ReferenceBank(other_model(loaded), identity)
    with progress_bars() as progress:
        for done in range(0, len(requests), NUM_AT_ONCE):
            progress("recording", done, len(requests))
            bank.pin(requests[done : done + NUM_AT_ONCE])
        progress("recording", len(requests), len(requests))
    bank.save(output, overwrite=overwrite)
    _report(output, bank, tokenizer, json)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="File written by `treft reference record`.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub id, to show tokens as text.")
    ] = None,
    json: Json = False,
) -> None:
    """Show whose keys and values a file holds, and at which tokens."""
    quiet_libraries()
    from treft.core.reference import ReferenceBank
    from treft.models.loading import LoadOptions, load_tokenizer

    bank = ReferenceBank.load(file)
    found = None if tokenizer is None else load_tokenizer(tokenizer, LoadOptions())
    _report(file, bank, found, json)


def _region_names(regions: list[str] | None, file: Path | None) -> tuple[RegionName, ...]:
    names = tuple(dict.fromkeys(regions or ["prefix"]))
    if unknown := [name for name in names if name not in SHARED]:
        raise ConfigError(f"--region is one of {', '.join(SHARED)}, not {', '.join(unknown)}.")
    if "postfix" in names and file is None:
        raise ConfigError("a postfix is recorded where rows have it: name them with --input.")
    return cast("tuple[RegionName, ...]", names)


def _report(file: Path, bank: ReferenceBank, tokenizer: Tokenizer | None, as_json: bool) -> None:
    """The documented JSON object (docs/cli.md), or the same for people."""
    from dataclasses import asdict

    identity = asdict(cast(Any, bank.identity))
    entries = [_entry(bank, request, tokenizer) for request in bank]
    size = file.stat().st_size
    if as_json:
        result = {"file": str(file), "bytes": size, "identity": identity, "entries": entries}
        emit({"command": "reference", **result}, as_json=True)
        return
    emit({"file": file, "bytes": f"{size:,}", **identity, "entries": len(entries)}, as_json=False)
    for entry in entries[:NUM_SHOWN]:
        tokens = entry["token_ids"] if entry["text"] is None else repr(entry["text"])
        typer.echo(
            f"{entry['num_tokens']} tokens from position {entry['first_position']}: {tokens}"
        )
    if len(entries) > NUM_SHOWN:
        typer.echo(f"and {len(entries) - NUM_SHOWN} more (--json shows all)")


def _entry(
    bank: ReferenceBank, request: ReferenceRequest, tokenizer: Tokenizer | None
) -> dict[str, Any]:
    states = bank.get([request])[0]
    key = next(iter(states.values())).key
    return {
        "num_tokens": len(request.keep),
        "first_position": request.positions[0],
        "num_layers": len(states),
        "shape": list(key.shape),
        "dtype": str(key.dtype).removeprefix("torch."),
        "token_ids": list(request.kept_ids),
        "text": None if tokenizer is None else tokenizer.decode(list(request.kept_ids)),
    }
