"""`treft generate`: answer one prompt or a file of conversations, repaired by patching or not."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from treft.cli.output import emit, progress_bars, quiet_libraries
from treft.errors import ConfigError

if TYPE_CHECKING:
    from treft.generation import RepairedModel
    from treft.loading import LoadOptions

__all__ = ["generate"]


def generate(
    model: Annotated[str, typer.Option(help="Folder or hub id; an adapter works, too.")],
    adapter: Annotated[str | None, typer.Option(help="Adapter to put on the model.")] = None,
    patch: Annotated[
        list[str] | None, typer.Option(help="Region to repair: prefix, postfix, query; repeatable.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Unfinetuned model to patch from; default: adapter off.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="File of `treft reference record` to patch from.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="One question.")] = None,
    system: Annotated[str | None, typer.Option(help="System message for --prompt.")] = None,
    input: Annotated[Path | None, typer.Option(help="JSONL file of `messages`.")] = None,
    output: Annotated[Path | None, typer.Option(help="JSONL file to write.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --output.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Cap of an answer.", min=1)] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0.0)] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus, when sampling.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Conversations run together.", min=1)] = 16,
    dtype: Annotated[str, typer.Option(help="Of the weights.")] = "auto",
    device: Annotated[str | None, typer.Option(help="Such as cuda:0; default CPU.")] = None,
    think_block: Annotated[
        bool, typer.Option(help="An empty think block belongs to the postfix.")
    ] = True,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code from the model's repository.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Answer with a model, by choice with the unfinetuned model's keys and values in its cache."""
    quiet_libraries()
    from treft.cli.conversations import common_tools, read_conversations, up_to_last_query
    from treft.loading import LoadOptions

    rows = read_conversations(prompt, system, input)
    questions = [
        up_to_last_query(row, f"{input or 'prompt'}, row {number}")
        for number, row in enumerate(rows, start=1)
    ]
    tools = common_tools(rows)
    if output is not None and output.exists() and not overwrite:
        raise ConfigError(f"{output} exists: choose another --output, or pass --overwrite.")
    options = LoadOptions(dtype, device, trust_remote_code)
    repaired = _load(model, adapter, patch or [], base, reference, options)
    with progress_bars() as progress:
        progress("answering", 0, len(questions))
        answers = repaired.generate(
            questions,
            tools=tools,
            include_think_block=think_block,
            batch_size=batch_size,
            seed=seed,
            on_batch=lambda done: progress("answering", done, len(questions)),
            max_new_tokens=max_new_tokens,
            **_sampling(temperature, top_p),
        )
    answered = [
        {"messages": question, "answer": answer}
        for question, answer in zip(questions, answers, strict=True)
    ]
    if output is not None:
        from treft.files import write_whole

        lines = [json_module.dumps(row, ensure_ascii=False) for row in answered]
        write_whole(output, "\n".join(lines) + "\n")
    _report(answered, model, adapter, repaired, output, seed, temperature, json)


def _load(
    model: str,
    adapter: str | None,
    regions: list[str],
    base: str | None,
    reference: Path | None,
    options: LoadOptions,
) -> RepairedModel:
    """The model, with what it is patched from."""
    from treft.generation import RepairedModel, patch
    from treft.loading import load_model

    if base is not None and reference is not None:
        raise ConfigError("give one of --base and --reference: what to patch from.")
    if not regions and (base is not None or reference is not None):
        raise ConfigError("--base and --reference are what to patch from: name a --patch region.")
    loaded, tokenizer = load_model(model, adapter, options)
    if not regions:
        return RepairedModel(loaded, tokenizer, None, ())
    source: Any = reference if base is None else load_model(base, None, options)[0]
    names: Any = regions
    return patch(loaded, tokenizer, names, reference=source)


def _sampling(temperature: float, top_p: float) -> dict[str, Any]:
    """Options for the model's `generate`, whose own defaults are not meant to count."""
    if temperature == 0:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}


def _report(
    answered: list[dict[str, Any]],
    model: str,
    adapter: str | None,
    repaired: RepairedModel,
    output: Path | None,
    seed: int,
    temperature: float,
    as_json: bool,
) -> None:
    if as_json:
        result = {
            "command": "generate",
            "model": model,
            "adapter": adapter,
            "patched": list(repaired.regions),
            "temperature": temperature,
            "seed": seed,
            "output": None if output is None else str(output),
            "answers": answered,
        }
        emit(result, as_json=True)
    elif output is None:
        for row in answered:
            typer.echo(row["answer"])
    else:
        print(f"{len(answered)} answers in {output}", file=sys.stderr)
