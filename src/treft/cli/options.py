"""Options that several commands have, defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "CHAT",
    "LOADING",
    "Device",
    "Dtype",
    "Input",
    "Json",
    "Overwrite",
    "Prompt",
    "Quantize",
    "System",
    "Template",
    "TemplateKwargs",
    "ThinkBlock",
    "Tools",
    "TrustRemoteCode",
]

CHAT = "What is asked"
LOADING = "Loading"

Prompt = Annotated[str | None, typer.Option(help="The user's words.", rich_help_panel=CHAT)]
System = Annotated[
    str | None,
    typer.Option(help="System message; default: the template's.", rich_help_panel=CHAT),
]
Input = Annotated[
    Path | None, typer.Option(help="JSONL file, one `messages` a row.", rich_help_panel=CHAT)
]
Tools = Annotated[
    Path | None,
    typer.Option(
        help="JSON file with a list of tool schemas, for rows without their own.",
        rich_help_panel=CHAT,
    ),
]
Template = Annotated[
    Path | None,
    typer.Option(help="Chat template to use instead of the tokenizer's.", rich_help_panel=CHAT),
]
TemplateKwargs = Annotated[
    str | None,
    typer.Option(
        help='Template variables, such as \'{"date_string": "26 Jul 2024"}\'.',
        rich_help_panel=CHAT,
    ),
]
ThinkBlock = Annotated[
    bool,
    typer.Option(help="Whether an empty think block belongs to the postfix.", rich_help_panel=CHAT),
]
Dtype = Annotated[
    str,
    typer.Option(help="Of the weights: auto, float32, bfloat16, float16.", rich_help_panel=LOADING),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Such as cpu or cuda:0, auto for all; default: a GPU if there is one.",
        rich_help_panel=LOADING,
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(help="8bit or 4bit, by bitsandbytes as weights load.", rich_help_panel=LOADING),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run code from the model's repository.",
        rich_help_panel=LOADING,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace --output if it exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
