"""Results of studies: copied to where the user wants them, and shown."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from treft.cli.output import emit
from treft.steps.run import Outcome
from treft.steps.step import Plan, Step
from treft.steps.store import Store
from treft.study.tables import RESULT_FILES
from treft.table import Cell, Table

COLUMNS = ("method", "measure", "value", "low", "high", "paper")


def step_states(plan: Plan, store: Store, missing: Mapping[str, Step[Any]]) -> list[dict[str, Any]]:
    """Name, state, seconds and address of each step."""
    records = {address: store.record(address) for address in plan.by_address}
    states = []
    for name, step in plan.named.items():
        record = records[step.address]
        absent = "missing" if step.address in missing else "not needed"
        states.append(
            {
                "name": name,
                "state": "stands" if record else absent,
                "seconds": record["seconds"] if record else None,
                "address": step.address,
            }
        )
    return states


def deliver(folders: Mapping[str, Path], targets: Mapping[str, Path]) -> dict[str, Path]:
    """Copy the files of results, each whole; returns where they went, by study."""
    for study, folder in folders.items():
        target = targets[study]
        target.mkdir(parents=True, exist_ok=True)
        for name in RESULT_FILES:
            temporary = target / f".{name}.{os.getpid()}.tmp"
            shutil.copyfile(folder / name, temporary)
            os.replace(temporary, target / name)
    return {study: targets[study] for study in folders}


def show(folder: Path, outcome: Outcome, as_json: bool) -> None:
    """Table and verdict of a study whose results stand."""
    result = _read(folder)
    if as_json:
        shown = {"command": "study run", **result, **_counts(outcome), "output": str(folder)}
        emit(shown, as_json=True)
        return
    claim, model = result["claim"], result["told"]["model"]
    place = "the organism" if model is None else model["label"]
    table = Table.of(
        COLUMNS,
        ([_cell(row[column]) for column in COLUMNS] for row in result["table"]),
        title=f"{claim['source']} on {place}, percent, 95 % intervals",
        caption=f"paper: {claim['setting']}",
    )
    console = Console()
    table.show(console)
    console.print(result["verdict"])
    console.print(f"Table, plot and what they come from: {folder}")


def show_several(
    folders: Mapping[str, Path],
    failed: list[str],
    left_out: Mapping[str, str],
    outcome: Outcome,
    as_json: bool,
) -> None:
    """Verdict of each study whose results stand, and the names of the others.

    Args:
        folders: with results, by study.
        failed: studies that should have run.
        left_out: why others could not, by study.
        outcome: of the run.
        as_json: one object.
    """
    found = [{**_read(folder), "output": str(folder)} for folder in folders.values()]
    if as_json:
        shown = {"command": "study run", "studies": found, "failed": failed, "left_out": left_out}
        emit({**shown, **_counts(outcome)}, as_json=True)
        return
    for result in found:
        print(f"{result['study']}  {result['verdict']}\n    {result['output']}")
    for name in failed:
        print(f"{name}  failed: no table")


def _read(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text("utf-8"))
    return result


def _counts(outcome: Outcome) -> dict[str, int]:
    return {"num_done": len(outcome.done), "num_stood": len(outcome.stood)}


def _cell(value: object) -> Cell:
    if isinstance(value, float):
        return Cell(f"{value:.1f}", is_number=True)
    return Cell("" if value is None else str(value))
