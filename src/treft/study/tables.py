"""The last step of a study: its rows as tidy tables, a verdict, a plot, and what they come from."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from matplotlib.text import Text

from treft.errors import DataError, needs_extra
from treft.files import write_whole
from treft.steps.step import Plan, Step, Work
from treft.steps.store import RECORD, library_versions
from treft.study.claims import CLAIMS_FILE
from treft.study.figures import shown
from treft.study.protocol import Row, Study, StudyConfig

TABLE = "table"
"""Name of a study's last step."""

STUDY_FILES = ("study", "claims")
"""Roles of the family's file and of `claims.yaml`, which decide a study's table."""

RESULT_FILES = (
    *("table.csv", "table.parquet", "runs.csv", "runs.parquet"),
    *("table.md", "plot.png", "result.json"),
)
"""What a study's last step writes."""

_PLACE = re.compile(r"\b(on|of) the (?:\w+ )?organism\b")
"""Where studies say that something was found."""

METADATA_KEY = b"treft"
"""Of the Parquet schema's metadata; its value is JSON."""


def write_table(folder: Path, name: str, rows: Sequence[Row], metadata: Mapping[str, Any]) -> None:
    """Write `name.csv` and `name.parquet`.

    Args:
        folder: where to.
        name: of both files, without ending.
        rows: all with the same columns, values that are numbers, words or None.
        metadata: of the Parquet file: code version, seeds, machine and so on.

    Raises:
        DataError: there is no row, or rows differ in their columns.
        ConfigError: pyarrow is not installed.
    """
    if not rows:
        raise DataError(f"the table {name} has no rows.")
    for number, row in enumerate(rows):
        if list(row) != list(rows[0]):
            raise DataError(
                f"row {number} of the table {name} has the columns {', '.join(row)}; the first "
                f"has {', '.join(rows[0])}."
            )
    pyarrow, csv, parquet = _pyarrow()
    table = pyarrow.Table.from_pylist([dict(row) for row in rows])
    csv.write_csv(table, folder / f"{name}.csv")
    text = json.dumps(metadata, sort_keys=True, ensure_ascii=False)
    table = table.replace_schema_metadata({METADATA_KEY: text.encode()})
    parquet.write_table(table, folder / f"{name}.parquet")


def read_table(path: Path) -> list[Row]:
    """Returns rows of a Parquet file that `write_table` wrote."""
    _, _, parquet = _pyarrow()
    rows: list[Row] = parquet.read_table(path).to_pylist()
    return rows


def read_metadata(path: Path) -> dict[str, Any]:
    """Metadata of a Parquet file that `write_table` wrote."""
    _, _, parquet = _pyarrow()
    found: dict[str, Any] = json.loads(parquet.read_schema(path).metadata[METADATA_KEY])
    return found


def _pyarrow() -> tuple[Any, Any, Any]:
    with needs_extra("train", "tables need"):
        import pyarrow
        from pyarrow import csv, parquet
    return pyarrow, csv, parquet


def table_step(study: Study, config: StudyConfig) -> Step[Any]:
    """Returns the last step, which makes the table of those that no other one needs."""
    module = study.verdict.__module__
    told = _Tabulation(
        module,
        study.name,
        config.num_seeds,
        config.split,
        dict(config.settings),
        tuple(path.resolve().name for path in config.organisms),
        None if config.model is None else config.model.told,
    )
    own = Path(str(sys.modules[module].__file__))
    runs = Plan.of(study.steps(config)).results
    files = dict(zip(STUDY_FILES, (own, CLAIMS_FILE), strict=True))
    return Step(TABLE, tabulate, told, {**runs, **files})


@dataclass(frozen=True)
class _Tabulation:
    """Which study, and what it was told.

    Attributes:
        module: whose STUDIES have it.
        study: its name.
        num_seeds: as in `StudyConfig`, and so are the others.
        split: question set.
        settings: that differ from the recipe.
        organisms: names of their folders; none for the embedded one.
        model: what `ModelSetup.told` says; None for organisms.
    """

    module: str
    study: str
    num_seeds: int
    split: str
    settings: Mapping[str, Any]
    organisms: tuple[str, ...]
    model: Mapping[str, Any] | None = None

    def placed(self, text: str) -> str:
        """A study's words, which speak of the organism, about the model it was run on."""
        if self.model is None:
            return text
        label = self.model["label"]
        return _PLACE.sub(lambda found: f"{found[1]} {label}", text)


def tabulate(work: Work[_Tabulation]) -> None:
    """Write `runs.*` (a row for each input), `table.*`, `plot.png` and `result.json`."""
    family = import_module(work.config.module).STUDIES
    study = next(one for one in family if one.name == work.config.study)
    folders = {role: path for role, path in work.inputs.items() if role not in STUDY_FILES}
    runs: list[Row] = [
        json.loads((folder / "row.json").read_text("utf-8")) for folder in folders.values()
    ]
    rows = study.table(runs)
    made_from = _origins(folders)
    verdict = work.config.placed(study.verdict(rows))
    write_table(work.folder, "runs", runs, made_from)
    write_table(work.folder, "table", rows, made_from)
    write_whole(work.folder / "table.md", f"{shown(rows).markdown()}\n")
    told = asdict(work.config)
    del told["module"], told["study"]
    result = {
        "study": study.name,
        "claim": asdict(study.claim),
        "told": told,
        "verdict": verdict,
        "table": rows,
        "made_from": made_from,
    }
    write_whole(work.folder / "result.json", json.dumps(result, indent=1, ensure_ascii=False))
    figure = study.plot(rows)
    for text in figure.findobj(Text):
        if (placed := work.config.placed(text.get_text())) != text.get_text():
            text.set_text(placed)
    figure.savefig(work.folder / "plot.png", dpi=110, metadata={"Software": None})


def _origins(inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Code, seeds and machines of all results that a table is made of, as far as they are kept."""
    records: dict[str, dict[str, Any]] = {}
    pending = list(inputs.values())
    while pending:
        folder = pending.pop()
        if folder.name in records or not (folder / RECORD).is_file():
            continue
        record = json.loads((folder / RECORD).read_text("utf-8"))
        records[folder.name] = record
        pending += [folder.parent / address for address in record["inputs"].values()]
    found = list(records.values())
    machines = [record["machine"] for record in found]
    data: dict[str, set[str]] = {}
    for record in found:
        for role, digest in record["data"].items():
            data.setdefault(role, set()).add(digest)
    return {
        "sources": {r["function"]: f"version {r['version']}" for r in found},
        "libraries": library_versions(),
        "seeds": sorted({record["seed"] for record in found} - {None}),
        "machines": [machine for i, machine in enumerate(machines) if machine not in machines[:i]],
        "data": {role: sorted(digests) for role, digests in data.items()},
        "seconds": round(sum(record["seconds"] for record in found), 1),
        "steps": {name: folder.name for name, folder in inputs.items()},
    }
