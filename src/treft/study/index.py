"""A page of all claims: the paper's table or figure, its study, what was found, and where from.

It is made of the `result.json` that studies left; nothing is computed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from treft.errors import ConfigError, DataError
from treft.study.claims import Claim, Listing, listings
from treft.study.protocol import Row
from treft.table import Table

RESULT = "result.json"
MARK = "<!-- Written by `treft study index` from results of studies: change those instead. -->"
HEADER = """# The paper's claims

Every claim that a study tests, in the order of the paper's tables, its figures, then its text.
**The figures of the organism are those of a language model of 1.1 million parameters in a made-up
world, not the paper's**, which are of models of 7 to 32 billion parameters in theirs: what can be
compared is the direction of an effect. Brackets hold 95 % intervals.

Tables 7, 8, 11 and 18 and Figures 3 and 5 to 8 have no study: the notes on the paper that this
project is built from do not say what they hold."""
PROVENANCE = """## What the results come from

`code` begins a hash of the code versions of all steps; `result.json` has them (`sources`), and
libraries, digests of data and addresses of steps. Core seconds are by the clock, so a busy machine
shows in them; they include steps that other studies share."""


class _Told(BaseModel):
    num_seeds: int
    split: str
    settings: dict[str, Any]
    organisms: list[str]
    model: dict[str, Any] | None = None


class _MadeFrom(BaseModel):
    sources: dict[str, str]
    libraries: dict[str, str]
    seeds: list[int]
    machines: list[dict[str, str | int]]
    seconds: float


class _Result(BaseModel):
    study: str
    claim: Claim
    told: _Told
    verdict: str
    table: list[dict[str, Any]]
    made_from: _MadeFrom


def paper_index(results: Path, beside: Path) -> str:
    """Returns the page in Markdown.

    Args:
        results: folder with a `STUDY/result.json` for each study that was run.
        beside: folder that the page will lie in, for its links.

    Raises:
        ConfigError: there is no such folder.
        DataError: a result cannot be read, or is of no study there is.
    """
    if not results.is_dir():
        raise ConfigError(f"{results} is no folder; `treft study run all --output` makes one.")
    studies = dict(sorted(listings().items(), key=lambda named: _place(named[1].claim.source)))
    found = _read(results, list(studies))
    link = Path(os.path.relpath(results, beside)).as_posix()
    parts = [f"{MARK}\n{HEADER}", _overview(studies, found)]
    for name, study in studies.items():
        result = found.get(name)
        parts.append(_not_run(name, study) if result is None else _section(result, link))
    if found:
        own = [found[name] for name in studies if name in found]
        parts.append(f"{PROVENANCE}\n\n{Table.of(_ORIGIN, map(_origin, own)).markdown()}")
    return "\n\n".join(parts) + "\n"


def is_index(text: str) -> bool:
    """Returns whether a file's text is such a page, which a new one may replace."""
    return text.startswith(MARK)


def _read(results: Path, known: Sequence[str]) -> dict[str, _Result]:
    found = {}
    for path in sorted(results.glob(f"*/{RESULT}")):
        try:
            result = _Result.model_validate_json(path.read_text("utf-8"))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise DataError(
                f"{path}: {where}: {first['msg']}. Run the study again with --output."
            ) from error
        name = path.parent.name
        if result.study != name or name not in known:
            raise DataError(
                f"{path} is a result of {result.study}: its folder must have that name, and there "
                f"must be that study (there are {', '.join(sorted(known))})."
            )
        if result.told.model is not None:
            raise DataError(
                f"{path} is a result on {result.told.model['label']}, and this page is about the "
                "organism: keep it in another folder."
            )
        found[name] = result
    return found


def _place(source: str) -> tuple[int, int, str]:
    """Tables by number, then figures, then the rest."""
    match = re.search(r"\b(Table|Figure)s? (\d+)", source)
    if match is None:
        return (2, 0, source)
    return (("Table", "Figure").index(match[1]), int(match[2]), source)


def _overview(studies: Mapping[str, Listing], found: Mapping[str, _Result]) -> str:
    rows = []
    for name, study in studies.items():
        result = found.get(name)
        answer = "not run" if result is None else result.verdict.partition(":")[0]
        rows.append((study.claim.source, f"[{name}](#{name})", answer))
    return Table.of(("paper", "study", "on the organism"), rows).markdown()


def _not_run(name: str, study: Listing) -> str:
    return _head(name, study.claim, f"treft study run {name}") + "\n\nNot run."


def _section(result: _Result, link: str) -> str:
    folder = f"{link}/{result.study}"
    files = ("table.md", "table.csv", "runs.csv", RESULT, "plot.png")
    links = " · ".join(f"[{name}]({folder}/{name})" for name in files)
    return "\n\n".join(
        [
            _head(result.study, result.claim, _command(result)),
            result.verdict,
            f"The paper's: {result.claim.setting}. {links}",
        ]
    )


def _head(name: str, claim: Claim, command: str) -> str:
    return f"## {name}\n\n**{claim.source}.** {claim.text}\n\n    {command}"


def _command(result: _Result) -> str:
    told = result.told
    words = ["treft", "study", "run", result.study, "--seeds", str(told.num_seeds)]
    if told.split != "test":
        words += ["--split", told.split]
    for name in told.organisms:
        words += ["--organism", name]
    for name, value in told.settings.items():
        words += ["--set", f"{name}={value}"]
    return shlex.join(words)


_ORIGIN = ("study", "treft", "code", "seeds", "counts", "split", "machine", "core seconds")


def _origin(result: _Result) -> tuple[str, ...]:
    made_from, libraries = result.made_from, result.made_from.libraries
    sources = json.dumps(made_from.sources, sort_keys=True)
    return (
        result.study,
        f"{libraries.get('treft', '?')}, torch {libraries.get('torch', '?')}",
        f"`{hashlib.sha256(sources.encode()).hexdigest()[:12]}`",
        ", ".join(map(str, made_from.seeds)),
        "; ".join(_counts(result.table)),
        result.told.split,
        "; ".join(dict.fromkeys(map(_machine, made_from.machines))),
        f"{made_from.seconds:,.0f}",
    )


def _counts(rows: Sequence[Row]) -> Iterator[str]:
    """Yields what each `num_` column holds, such as `5 runs`."""
    for name in rows[0]:
        if name.startswith("num_"):
            values = sorted({row[name] for row in rows if row[name]})
            if values:
                shown = " or ".join(f"{value:,}" for value in values)
                yield f"{shown} {name.removeprefix('num_').replace('_', ' ')}"


def _machine(machine: Mapping[str, str | int]) -> str:
    shown = f"{machine.get('processor', '?')}, {machine.get('cores', '?')} cores"
    return f"{shown}, {machine['gpus']}" if "gpus" in machine else shown
