"""`treft reference`: record the unfinetuned model's keys and values, and look into such a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from treft.cli.output import emit, quiet_libraries
from treft.errors import ConfigError

__all__ = ["app"]

app = typer.Typer(
    help="Record the unfinetuned model's keys and values, or look into a file of them.",
    no_args_is_help=True,
)
SHARED = ("prefix", "postfix")


@app.command()
def record(
    model: Annotated[str, typer.Option(help="The unfinetuned model: folder or hub id.")],
    output: Annotated[Path, typer.Option(help="Safetensors file to write.")],
    adapter: Annotated[
        str | None, typer.Option(help="Adapter that the model had before this finetune.")
    ] = None,
    region: Annotated[
        list[str] | None, typer.Option(help="prefix (default) or postfix; repeatable.")
    ] = None,
    input: Annotated[
        Path | None, typer.Option(help="JSONL file of `messages`: all its prompts are recorded.")
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="System message, when there is no file.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --output.")] = False,
    think_block: Annotated[
        bool, typer.Option(help="An empty think block belongs to the postfix.")
    ] = True,
    dtype: Annotated[str, typer.Option(help="Of the weights.")] = "auto",
    device: Annotated[str | None, typer.Option(help="Such as cuda:0; default CPU.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code from the repository.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Record each distinct prefix (and postfix) of the rows, for repair and for training.

    Without a file, the prefix of a chat with the given system message, or the template's default
    one, is recorded. A postfix is recorded after an empty query, at each place that it has in the
    rows, and therefore needs a file.
    """
    quiet_libraries()
    names = tuple(dict.fromkeys(region or ["prefix"]))
    unknown = [name for name in names if name not in SHARED]
    if unknown:
        raise ConfigError(f"--region is one of {', '.join(SHARED)}, not {', '.join(unknown)}.")
    if "postfix" in names and input is None:
        raise ConfigError("a postfix is recorded where rows have it: name them with --input.")
    if output.exists() and not overwrite:
        raise ConfigError(f"{output} exists: choose another --output, or pass --overwrite.")
    from treft.loading import LoadOptions, load_model
    from treft.reference import ReferenceBank, identify, other_model
    from treft.regions import template_hash

    conversations = _conversations(input, system)
    loaded, tokenizer = load_model(model, adapter, LoadOptions(dtype, device, trust_remote_code))
    requests = _requests(tokenizer, conversations, names, think_block)
    name = None if adapter is None else "default"
    bank = ReferenceBank(
        other_model(loaded), identify(loaded, template_hash(tokenizer), adapter=name)
    )
    bank.pin(requests)
    bank.save(output, overwrite=overwrite)
    emit(_contents(output, bank, tokenizer), as_json=json)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="File written by `treft reference record`.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub id, to show tokens as text.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show whose keys and values a file holds, and at which tokens."""
    quiet_libraries()
    from treft.loading import LoadOptions, load_tokenizer
    from treft.reference import ReferenceBank

    bank = ReferenceBank.load(file)
    found = None if tokenizer is None else load_tokenizer(tokenizer, LoadOptions())
    emit(_contents(file, bank, found), as_json=json)


def _conversations(file: Path | None, system: str | None) -> list[Any]:
    """Rows of the file, or a chat that says nothing but has the wanted prefix."""
    from treft.cli.conversations import read_conversations

    if file is not None:
        return read_conversations(None, system, file)
    return read_conversations("x", system, None)


def _requests(tokenizer: Any, conversations: Any, names: Any, think_block: bool) -> list[Any]:
    """The distinct requests of all rows, in order."""
    from treft.regions import find_regions
    from treft.requests import region_requests

    requests: dict[Any, None] = {}
    for conversation in conversations:
        chat = find_regions(
            tokenizer,
            conversation.messages,
            tools=conversation.tools,
            add_generation_prompt=conversation.messages[-1]["role"] != "assistant",
            include_think_block=think_block,
        )
        for name in names:
            chat.require(name)
            requests.update(dict.fromkeys(region_requests(chat, name)))
    return list(requests)


def _contents(file: Path, bank: Any, tokenizer: Any) -> dict[str, Any]:
    """The documented JSON object (docs/cli.md)."""
    from dataclasses import asdict

    entries = []
    for request in bank:
        states = bank.get([request])[0]
        key = next(iter(states.values())).key
        entries.append(
            {
                "num_tokens": len(request.keep),
                "first_position": request.positions[0],
                "num_layers": len(states),
                "shape": list(key.shape),
                "dtype": str(key.dtype).removeprefix("torch."),
                "text": None if tokenizer is None else tokenizer.decode(list(request.kept_ids)),
            }
        )
    return {
        "file": str(file),
        "bytes": file.stat().st_size,
        "identity": asdict(bank.identity),
        "entries": entries,
    }
