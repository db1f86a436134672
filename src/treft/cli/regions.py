"""`treft regions`: show a rendered prompt with its regions in colour, for any tokenizer."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from treft.cli.output import emit, quiet_libraries
from treft.errors import DataError

if TYPE_CHECKING:
    from treft.regions import ChatRegions

__all__ = ["regions"]

STYLES = {
    "prefix": "black on bright_yellow",
    "query": "black on bright_cyan",
    "postfix": "black on bright_magenta",
    "response": "black on bright_green",
}


def regions(
    tokenizer: Annotated[str, typer.Option(help="Folder or hub id with a tokenizer.")],
    prompt: Annotated[str | None, typer.Option(help="The user's words.")] = None,
    system: Annotated[str | None, typer.Option(help="System message for --prompt.")] = None,
    input: Annotated[Path | None, typer.Option(help="JSONL file of `messages`.")] = None,
    row: Annotated[int, typer.Option(help="Which row of --input, from 1.", min=1)] = 1,
    template: Annotated[
        Path | None, typer.Option(help="Chat template to use instead of the tokenizer's.")
    ] = None,
    tools: Annotated[Path | None, typer.Option(help="JSON file: a list of tool schemas.")] = None,
    generation_prompt: Annotated[
        bool | None, typer.Option(help="Default: when the last message is not an assistant's.")
    ] = None,
    think_block: Annotated[
        bool, typer.Option(help="An empty think block belongs to the postfix.")
    ] = True,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code from the repository.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show which tokens of a chat are prefix, query, postfix and response."""
    quiet_libraries()
    from treft.cli.conversations import read_conversations
    from treft.loading import LoadOptions, load_tokenizer
    from treft.regions import find_regions

    conversations = read_conversations(prompt, system, input)
    if row > len(conversations):
        raise DataError(f"{input} has {len(conversations)} rows; there is no row {row}.")
    chosen = conversations[row - 1]
    chat_template = _read(template)
    found = find_regions(
        load_tokenizer(tokenizer, LoadOptions(trust_remote_code=trust_remote_code), chat_template),
        chosen.messages,
        tools=_tools(tools) if tools is not None else chosen.tools,
        chat_template=chat_template,
        add_generation_prompt=(
            chosen.messages[-1]["role"] != "assistant"
            if generation_prompt is None
            else generation_prompt
        ),
        include_think_block=think_block,
    )
    if json:
        emit(_result(tokenizer, found), as_json=True)
    else:
        _show(found)


def _read(template: Path | None) -> str | None:
    if template is None:
        return None
    try:
        return template.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{template}: cannot be read ({error.strerror}).") from error


def _tools(path: Path) -> list[Any]:
    try:
        found = json_module.loads(_read(path) or "")
    except json_module.JSONDecodeError as error:
        raise DataError(f"{path}: malformed JSON ({error.msg}); write a list of schemas.") from None
    if not isinstance(found, list):
        raise DataError(f"{path}: is no list; write a list of tool schemas.")
    return found


def _result(tokenizer: str, found: ChatRegions) -> dict[str, Any]:
    """The documented JSON object (docs/cli.md)."""
    from treft.regions import REGION_CODES

    names = {code: name for name, code in REGION_CODES.items()}
    return {
        "command": "regions",
        "tokenizer": tokenizer,
        "text": found.text,
        "num_tokens": {name: found.codes.count(code) for code, name in names.items()},
        "tokens": [
            {
                "id": token_id,
                "text": found.text[start:end],
                "region": names.get(code),
                "turn": turn if code in names else None,
            }
            for token_id, (start, end), code, turn in zip(
                found.input_ids, found.offsets, found.codes, found.turns, strict=True
            )
        ],
    }


def _show(found: ChatRegions) -> None:
    """The text in colour, then what the colours mean."""
    from rich.console import Console
    from rich.text import Text

    from treft.regions import REGION_CODES

    names = {code: name for name, code in REGION_CODES.items()}
    painted = Text(found.text)
    for (start, end), code in zip(found.offsets, found.codes, strict=True):
        if code in names:
            painted.stylize(STYLES[names[code]], start, end)
    legend = Text()
    for code, name in names.items():
        legend.append(f" {name} ", STYLES[name])
        legend.append(f" {found.codes.count(code)} tokens   ")
    legend.append(f"none: {found.codes.count(0)}")
    console = Console(soft_wrap=True)
    console.print(painted)
    console.print(legend)
