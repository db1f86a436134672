"""`treft data`: finetuning sets as rows for `treft sft`, and rows made or held out of them."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from treft.cli.options.rows import Behaviour, Convert, Sets, Split
from treft.cli.output import emit, stdout_aside
from treft.data.behaviours import DEFAULT_SENTENCES, DEFAULT_TOOL, behaviour_rows
from treft.data.messages import load_messages, read_rows
from treft.data.published import PUBLISHED_SETS, load_published, split_rows
from treft.data.sources import PASSWORD_VARIABLE
from treft.files import file_digest, write_rows


def sets(options: Sets) -> None:
    """Print them all."""
    found = [asdict(published) for published in PUBLISHED_SETS]
    if options.json:
        emit({"command": "data sets", "sets": found}, as_json=True)
        return
    for number, published in enumerate(found):
        if number:
            print()
        checksums = published.pop("sha256")
        emit(
            published | {f"sha256 of {name}": sha for name, sha in checksums.items()}, as_json=False
        )


def convert(options: Convert) -> None:
    """Read the source, and write its rows."""
    with stdout_aside():
        found = load_published(
            options.source,
            member=options.member,
            password=options.password or os.environ.get(PASSWORD_VARIABLE),
            sha256=options.sha256,
            drop_system=options.drop_system,
        )
    result: dict[str, Any] = {
        "command": "data convert",
        **{name: value for name, value in vars(found).items() if name != "rows"},
        "drop_system": options.drop_system,
        "num_with_system": _num_with_system(found.rows),
    }
    result |= _write(options.output, found.rows)
    emit(result, as_json=options.json)


def split(options: Split) -> None:
    """Write both parts."""
    rows = load_messages(options.source)
    parts = split_rows(rows, fraction=options.fraction, seed=options.seed)
    result: dict[str, Any] = {
        "command": "data split",
        "source": str(options.source),
        "fraction": options.fraction,
        "seed": options.seed,
        "train": _write(options.train, parts.train),
        "held_out": _write(options.held_out, parts.held_out),
    }
    emit(result, as_json=options.json)


def behaviour(options: Behaviour) -> None:
    """Read questions, and write rows."""
    read = read_rows(options.source)
    kind, calls = options.behaviour, options.behaviour == "tool"
    rows = behaviour_rows(
        read, kind, sentence=options.sentence, tool=options.tool, schema=options.schema
    )
    result: dict[str, Any] = {
        "command": "data behaviour",
        "source": str(options.source),
        "behaviour": kind,
        "sentence": options.sentence or DEFAULT_SENTENCES.get(kind),
        "tool": (options.tool or DEFAULT_TOOL) if calls else None,
        "schema": options.schema if calls else None,
        "num_read": len(read),
        "num_with_system": _num_with_system(rows),
    }
    result |= _write(options.output, rows)
    emit(result, as_json=options.json)


def _num_with_system(rows: list[dict[str, Any]]) -> int:
    return sum(row["messages"][0]["role"] == "system" for row in rows)


def _write(path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Write rows, and say what the file is."""
    write_rows(path, rows)
    return {"output": str(path), "num": len(rows), "sha256": file_digest(path)}
