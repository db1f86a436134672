"""Options that several commands of attribution have, defined once."""

from __future__ import annotations

from typing import Annotated

import typer

from treft.cli.options import ANSWERS, MODELS, split_names

CHANGED = "What is changed"
QUESTIONS = "Questions"

Model = Annotated[
    str,
    typer.Option(help="Finetuned model: folder, hub id, or an adapter.", rich_help_panel=MODELS),
]
Base = Annotated[
    str | None,
    typer.Option(
        help="Unfinetuned model; default: the adapter switched off.", rich_help_panel=MODELS
    ),
]
Questions = Annotated[
    str, typer.Option(help="JSONL file, shipped set, or organism.", rich_help_panel=QUESTIONS)
]
Scope = Annotated[
    str,
    typer.Option(help="general or in_domain: where answers count.", rich_help_panel=QUESTIONS),
]
Num = Annotated[
    int | None,
    typer.Option(help="Questions, the first ones; default: all.", rich_help_panel=QUESTIONS),
]
Split = Annotated[
    str,
    typer.Option(
        help="Of the organism's questions: test or validation.", rich_help_panel=QUESTIONS
    ),
]
Domain = Annotated[
    str, typer.Option(help="That the organism was finetuned on.", rich_help_panel=QUESTIONS)
]
Regions = Annotated[
    list[str] | None,
    typer.Option(
        "--region",
        help="prefix, query, postfix, or several: prefix,query; default: all.",
        callback=split_names,
        rich_help_panel=CHANGED,
    ),
]
Samples = Annotated[
    int, typer.Option(help="Answers to each prompt.", min=1, rich_help_panel=ANSWERS)
]
