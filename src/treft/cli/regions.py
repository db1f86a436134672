"""`treft regions`: show a rendered prompt with its regions in colour, for any tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from treft.chat.regions import REGION_CODES, ChatRegions
from treft.cli.conversations import read_conversations, render
from treft.cli.options.chats import Regions
from treft.cli.output import emit
from treft.data.messages import Conversation
from treft.errors import DataError
from treft.models.load_options import LoadOptions
from treft.models.loading import load_tokenizer

NAMES = {**{code: name for name, code in REGION_CODES.items()}, 0: "none"}
"""Region code to name, in the order of the regions in a chat."""

STYLES = {
    "prefix": "black on bright_yellow",
    "query": "black on bright_cyan",
    "postfix": "black on bright_magenta",
    "response": "black on bright_green",
    "none": "dim",
}


def regions(options: Regions) -> None:
    """Print a chat's text by region."""
    chosen = _row(read_conversations(options.prompt, options.chat), options.row)
    loading = LoadOptions(trust_remote_code=options.trust_remote_code)
    tokenizer = load_tokenizer(options.tokenizer, loading, options.rendering.template_text())
    is_open = options.generation_prompt
    (found,) = render(tokenizer, [chosen], options.rendering, None, is_open=is_open)
    if options.json:
        emit(_result(options.tokenizer, found), as_json=True)
    else:
        _show(found)


def _row(conversations: list[Conversation], row: int) -> Conversation:
    if row > len(conversations):
        raise DataError(f"there is no row {row}, only {len(conversations)}.")
    return conversations[row - 1]


def _result(tokenizer: str, found: ChatRegions) -> dict[str, Any]:
    """Returns the documented JSON object (docs/cli.md)."""
    return {
        "command": "regions",
        "tokenizer": tokenizer,
        "text": found.text,
        "num_tokens": {name: found.codes.count(code) for code, name in NAMES.items()},
        "tokens": [
            {
                "id": token_id,
                "text": found.text[start:end],
                "region": NAMES[code],
                "turn": turn,
            }
            for token_id, (start, end), code, turn in zip(
                found.input_ids, found.offsets, found.codes, found.turns, strict=True
            )
        ],
    }


class _Stretch(NamedTuple):
    """Neighbouring tokens of one region."""

    name: str
    text: str
    num_tokens: int


def _stretches(found: ChatRegions) -> Iterator[_Stretch]:
    first = 0
    num = len(found.codes)
    for end in range(1, num + 1):
        if end == num or found.codes[end] != found.codes[first]:
            start = found.offsets[first][0]
            stop = found.offsets[end][0] if end < num else len(found.text)
            yield _Stretch(NAMES[found.codes[first]], found.text[start:stop], end - first)
            first = end


def _show(found: ChatRegions) -> None:
    """Print in colour where there is colour; otherwise region by region."""
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
    for code, name in NAMES.items():
        legend.append(f" {name} ", STYLES[name])
        legend.append(f" {found.codes.count(code)} tokens   ")
    console.print(legend)
