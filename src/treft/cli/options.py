"""Options that several commands have, defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ANSWERS = "Answers"
CHAT = "What is asked"
LOADING = "Loading"
MODELS = "Models"

MAX_CALLS = 10_000
"""Default of `MaxCalls`: answers and calls together."""


def split_names(values: list[str] | None) -> list[str]:
    """Callback of options with several names: repeated, or with commas as `-M patch=` has them.

    An empty name stays one, so that a variable of the shell with nothing in it is refused.
    """
    return [name.strip() for value in values or () for name in value.split(",")]


Adapter = Annotated[
    str | None, typer.Option(help="Adapter to put on the model.", rich_help_panel=MODELS)
]
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
AllowOtherBase = Annotated[
    bool,
    typer.Option(
        "--allow-other-base",
        help="Put the adapter on a base that is not the one it names.",
        rich_help_panel=LOADING,
    ),
]
MaxNewTokens = Annotated[
    int, typer.Option(help="Cap of an answer.", min=1, rich_help_panel=ANSWERS)
]
Temperature = Annotated[float, typer.Option(help="0 is greedy.", min=0.0, rich_help_panel=ANSWERS)]
Seed = Annotated[
    int, typer.Option(help="Of all that is drawn at random.", min=0, rich_help_panel=ANSWERS)
]
BatchSize = Annotated[
    int, typer.Option(help="Prompts run together.", min=1, rich_help_panel=ANSWERS)
]
Judges = Annotated[
    list[str] | None,
    typer.Option(
        "--judge",
        help="Inspect model name, or oracle for the organism, its default; repeatable.",
        rich_help_panel=ANSWERS,
    ),
]
MaxCalls = Annotated[int, typer.Option(help="Ask before more answers and calls than this.", min=0)]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show the plan and its cost, and stop there.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace --output if it exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
