"""`treft regions`: show a rendered prompt with its regions in colour, for any tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from treft.cli.options import (
    CHAT,
    Input,
    Json,
    Prompt,
    System,
    Template,
    TemplateKwargs,
    ThinkBlock,
    Tools,
    TrustRemoteCode,
)
from treft.cli.output import emit, quiet_libraries
from treft.errors import DataError

if TYPE_CHECKING:
    from treft.chat.regions import ChatRegions
    from treft.data.messages import Conversation


STYLES = {
    "prefix": "black on bright_yellow",
    "query": "black on bright_cyan",
    "postfix": "black on bright_magenta",
    "response": "black on bright_green",
    "none": "dim",
}


def regions(
    tokenizer: Annotated[str, typer.Option(help="Folder or hub id with a tokenizer, or organism.")],
    prompt: Prompt = None,
    system: System = None,
    input: Input = None,
    row: Annotated[
        int, typer.Option(help="Which row of --input, from 1.", min=1, rich_help_panel=CHAT)
    ] = 1,
    tools: Tools = None,
    template: Template = None,
    template_kwargs: TemplateKwargs = None,
    generation_prompt: Annotated[
        bool | None,
        typer.Option(
            help="End with a response's header; default: if no assistant message ends the chat.",
            rich_help_panel=CHAT,
        ),
    ] = None,
    think_block: ThinkBlock = True,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Show which tokens of a chat are prefix, query, postfix and response."""
    quiet_libraries()
    from treft.chat.regions import find_regions
    from treft.cli.conversations import read_conversations, read_rendering
    from treft.models.loading import LoadOptions, load_tokenizer

    chosen = _row(read_conversations(prompt, system, input, tools), row)
    rendering = read_rendering(template, template_kwargs, think_block)
    is_open = chosen.messages[-1]["role"] != "assistant"
    options = LoadOptions(trust_remote_code=trust_remote_code)
    found = find_regions(
        load_tokenizer(tokenizer, options, rendering.template),
        chosen.messages,
        tools=chosen.tools,
        add_generation_prompt=is_open if generation_prompt is None else generation_prompt,
        include_think_block=rendering.include_think_block,
        template_kwargs=rendering.template_kwargs,
    )
    if json:
        emit(_result(tokenizer, found), as_json=True)
    else:
        _show(found)


def _row(conversations: list[Conversation], row: int) -> Conversation:
    if row > len(conversations):
        raise DataError(f"there is no row {row}, only {len(conversations)}.")
    return conversations[row - 1]


def _result(tokenizer: str, found: ChatRegions) -> dict[str, Any]:
    """The documented JSON object (docs/cli.md)."""
    names = _names()
    return {
        "command": "regions",
        "tokenizer": tokenizer,
        "text": found.text,
        "num_tokens": {name: found.codes.count(code) for code, name in names.items()},
        "tokens": [
            {
                "id": token_id,
                "text": found.text[start:end],
                "region": names[code],
                "turn": turn,
            }
            for token_id, (start, end), code, turn in zip(
                found.input_ids, found.offsets, found.codes, found.turns, strict=True
            )
        ],
    }


def _names() -> dict[int, str]:
    """Region code to name, in the order of the regions in a chat."""
    from treft.chat.regions import REGION_CODES

    return {**{code: name for name, code in REGION_CODES.items()}, 0: "none"}


class _Stretch(NamedTuple):
    """Neighbouring tokens of one region."""

    name: str
    text: str
    num_tokens: int


def _stretches(found: ChatRegions) -> Iterator[_Stretch]:
    names = _names()
    first = 0
    num = len(found.codes)
    for end in range(1, num + 1):
        if end == num or found.codes[end] != found.codes[first]:
            start = found.offsets[first][0]
            stop = found.offsets[end][0] if end < num else len(found.text)
            yield _Stretch(names[found.codes[first]], found.text[start:stop], end - first)
            first = end


def _show(found: ChatRegions) -> None:
    """In colour where there is colour; otherwise region by region."""
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    stretches = list(_stretches(found))
    if console.color_system is None:
        for stretch in stretches:
            console.print(
                f"{stretch.name:>8} {stretch.num_tokens:>4}  {stretch.text!r}", markup=False
            )
        return
    painted = Text()
    for stretch in stretches:
        painted.append(stretch.text.replace("\n", "⏎\n"), STYLES[stretch.name])
    console.print(painted)
    legend = Text()
    for code, name in _names().items():
        legend.append(f" {name} ", STYLES[name])
        legend.append(f" {found.codes.count(code)} tokens   ")
    console.print(legend)
