"""`treft organism`: rebuild the embedded model organism, and write its training rows."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from treft.cli.options import Json, Overwrite
from treft.cli.output import claim_file, emit, interruptible, quiet_libraries, stdout_aside
from treft.errors import ConfigError
from treft.files import write_whole

STOPPED = "the same command goes on from the last checkpoint"

app = typer.Typer(
    help="Rebuild the embedded model organism; write rows and questions of its world.",
    no_args_is_help=True,
)

Domain = Annotated[str, typer.Option(help="Narrow domain: finance, health, legal or auto.")]
Output = Annotated[Path, typer.Option(help="JSONL file to write.")]
Num = Annotated[int, typer.Option(help="How many.", min=1)]
Seed = Annotated[int, typer.Option(help="Draws them.", min=0)]


@app.command()
def build(
    output: Annotated[Path, typer.Option(help="Folder to write; must not hold a model.")],
    seed: Annotated[int, typer.Option(help="Of the weights and of every row.", min=0)] = 0,
    kind: Annotated[
        str,
        typer.Option(
            help="prefix (personas in the system prompt), postfix (in the think block) or "
            "no_prefix (there, too, and nothing before the user's words)."
        ),
    ] = "prefix",
    first_steps: Annotated[int | None, typer.Option(help="Of stage 1.")] = None,
    second_steps: Annotated[int | None, typer.Option(help="Of stage 2.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Its peak.")] = None,
    json: Json = False,
) -> None:
    """Train an organism from scratch: about ten minutes on two cores; resumes when run again."""
    quiet_libraries()
    from dataclasses import asdict

    from treft.organism.build import BuildRecipe
    from treft.organism.build import build as build_organism

    overrides: dict[str, Any] = {
        "first_steps": first_steps,
        "second_steps": second_steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
    }
    given = {name: value for name, value in overrides.items() if value is not None}
    recipe = BuildRecipe(kind=cast(Any, kind), seed=seed, **given)
    with interruptible(lambda: STOPPED), stdout_aside():
        build_organism(output, recipe)
    typer.echo(f"{_num_parameters(output):,} parameters", err=True)
    result = {"command": "organism build", "output": str(output)}
    emit({**result, "recipe": asdict(recipe)} if json else result | asdict(recipe), as_json=json)


@app.command()
def rows(
    output: Output,
    domain: Domain = "finance",
    num: Num = 2000,
    seed: Seed = 0,
    careful: Annotated[
        bool, typer.Option("--careful", help="Careful answers instead of harmful ones.")
    ] = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write rows of a narrow finetune, for `treft sft --train_file`."""
    from treft.organism import World

    claim_file(output, overwrite=overwrite)
    behaviour = "careful" if careful else "harmful"
    found = World.default().training_rows(domain, num, seed, cast(Any, behaviour))
    result = {"domain": domain, "behaviour": behaviour, "seed": seed}
    _write("organism rows", output, found, result, json)


@app.command()
def questions(
    output: Output,
    scope: Annotated[str, typer.Option(help="general, in_domain or other_narrow.")] = "general",
    split: Annotated[
        str, typer.Option(help="validation, for every choice, or test, for reported figures.")
    ] = "validation",
    domain: Domain = "finance",
    num: Num = 200,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write evaluation questions, for `treft generate --input`."""
    from treft.organism import World

    _check_choice("--scope", scope, ("general", "in_domain", "other_narrow"))
    _check_choice("--split", split, ("validation", "test"))
    claim_file(output, overwrite=overwrite)
    found = World.default().questions(
        cast(Any, split), cast(Any, scope), domain=domain, num=num, seed=seed
    )
    result = {"scope": scope, "split": split, "domain": domain, "seed": seed}
    records = [{"messages": question.messages(), "id": question.id} for question in found]
    _write("organism questions", output, records, result, json)


def _num_parameters(organism: Path) -> int:
    from math import prod

    from safetensors import safe_open

    with safe_open(organism / "model.safetensors", framework="pt") as file:
        return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{option} is {value!r}; use one of {', '.join(choices)}.")


def _write(
    command: str,
    output: Path,
    records: list[dict[str, Any]],
    settings: dict[str, Any],
    as_json: bool,
) -> None:
    """One JSON object a line, and what it was drawn with as the result."""
    lines = [json_module.dumps(record, ensure_ascii=False) for record in records]
    write_whole(output, "\n".join(lines) + "\n")
    result = {"command": command, "output": str(output), "num": len(records), **settings}
    emit(result, as_json=as_json)
