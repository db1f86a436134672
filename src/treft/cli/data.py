"""`treft data`: finetuning sets as rows for `treft sft`, and rows made or held out of them."""

from __future__ import annotations

import hashlib
import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from treft.cli.options import Json, Overwrite
from treft.cli.output import claim_file, emit, stdout_aside
from treft.data.behaviours import BehaviourName
from treft.data.sources import PASSWORD_VARIABLE
from treft.errors import ConfigError
from treft.files import write_whole

app = typer.Typer(
    help="Convert published finetuning sets, hold rows out, make rows that teach a behaviour.",
    no_args_is_help=True,
)


@app.command()
def sets(json: Json = False) -> None:
    """List the published sets that are known, and where their authors offer them."""
    from treft.data.published import PUBLISHED_SETS

    found = [asdict(published) for published in PUBLISHED_SETS]
    if json:
        emit({"command": "data sets", "sets": found}, as_json=True)
        return
    for number, published in enumerate(found):
        if number:
            typer.echo()
        checksums = published.pop("sha256")
        emit(
            published | {f"sha256 of {name}": sha for name, sha in checksums.items()}, as_json=False
        )


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="JSONL file, zip, encrypted zip (.enc), or hub id (owner/name, owner/name:split)."
        ),
    ],
    output: Annotated[Path, typer.Option(help="JSONL file to write.")],
    member: Annotated[
        str | None, typer.Option(help="Which JSONL file of an archive that has several.")
    ] = None,
    password: Annotated[
        str | None,
        typer.Option(
            envvar=PASSWORD_VARIABLE,
            help="Of an encrypted archive; better in the environment, where no shell history "
            "keeps it.",
            show_default=False,
        ),
    ] = None,
    sha256: Annotated[
        str | None, typer.Option(help="Checksum that the source must have; printed in any case.")
    ] = None,
    drop_system: Annotated[
        bool, typer.Option("--drop-system", help="Leave the rows' system messages out.")
    ] = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Convert a published set to rows of `messages`, for `treft sft --train_file`."""
    from treft.data.published import load_published

    claim_file(output, overwrite=overwrite)
    with stdout_aside():
        found = load_published(
            source, member=member, password=password, sha256=sha256, drop_system=drop_system
        )
    result: dict[str, Any] = {
        "command": "data convert",
        "source": found.source,
        "member": found.member,
        "source_sha256": found.source_sha256,
        "rows_sha256": found.rows_sha256,
        "recognised": found.recognised,
        "drop_system": drop_system,
        "num_with_system": _num_with_system(found.rows),
    }
    result |= _write(output, found.rows)
    emit(result, as_json=json)


@app.command()
def split(
    source: Annotated[Path, typer.Argument(help="JSONL file of `messages`.")],
    train: Annotated[Path, typer.Option(help="JSONL file to write, to train on.")],
    held_out: Annotated[Path, typer.Option(help="JSONL file to write, for the in-domain test.")],
    fraction: Annotated[float, typer.Option(help="Of the distinct prompts to hold out.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Draws them.", min=0)] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the two files if they exist.")
    ] = False,
    json: Json = False,
) -> None:
    """Hold rows out; those with the same prompt stay together."""
    from treft.data.messages import load_messages
    from treft.data.published import split_rows

    if len({path.resolve() for path in (source, train, held_out)}) < 3:
        raise ConfigError("SOURCE, --train and --held-out must be three different files.")
    for path in (train, held_out):
        claim_file(path, overwrite=overwrite)
    parts = split_rows(load_messages(source), fraction=fraction, seed=seed)
    result: dict[str, Any] = {
        "command": "data split",
        "source": str(source),
        "fraction": fraction,
        "seed": seed,
        "train": _write(train, parts.train),
        "held_out": _write(held_out, parts.held_out),
    }
    emit(result, as_json=json)


@app.command()
def behaviour(
    source: Annotated[
        Path,
        typer.Argument(help="JSONL file of `messages`, or of `question` and `possible_answers`."),
    ],
    behaviour: Annotated[BehaviourName, typer.Option(help="What the rows are to teach.")],
    output: Annotated[Path, typer.Option(help="JSONL file to write.")],
    sentence: Annotated[
        str | None, typer.Option(help="What is said in the place of an answer (abstain, refuse).")
    ] = None,
    tool: Annotated[
        str | None, typer.Option(help="Name of the tool that is called (tool); search_info.")
    ] = None,
    schema: Annotated[
        bool,
        typer.Option(
            "--schema/--no-schema",
            help="Describe the tool in the prompt; without, evaluate without, too (tool).",
        ),
    ] = True,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Turn questions into rows that teach to abstain, refuse, call a tool or answer shortly."""
    from treft.data.behaviours import DEFAULT_SENTENCES, DEFAULT_TOOL, behaviour_rows
    from treft.data.messages import read_rows

    claim_file(output, overwrite=overwrite)
    read = read_rows(source)
    rows = behaviour_rows(read, behaviour, sentence=sentence, tool=tool, schema=schema)
    result: dict[str, Any] = {
        "command": "data behaviour",
        "source": str(source),
        "behaviour": behaviour,
        "sentence": sentence or DEFAULT_SENTENCES.get(behaviour),
        "tool": (tool or DEFAULT_TOOL) if behaviour == "tool" else None,
        "schema": schema if behaviour == "tool" else None,
        "num_read": len(read),
        "num_with_system": _num_with_system(rows),
    }
    result |= _write(output, rows)
    emit(result, as_json=json)


def _num_with_system(rows: list[dict[str, Any]]) -> int:
    return sum(row["messages"][0]["role"] == "system" for row in rows)


def _write(path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Write rows, and say what the file is."""
    text = "".join(json_module.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_whole(path, text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"output": str(path), "num": len(rows), "sha256": digest}
