"""Tidy tables as CSV and Parquet, with what they come from in the Parquet file's metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from treft.errors import DataError, needs_extra
from treft.study.protocol import Row

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
    """Rows of a Parquet file that `write_table` wrote."""
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
