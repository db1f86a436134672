"""All studies by name, and the whole plan of one: its own steps, then their table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from treft import __version__
from treft.errors import ConfigError
from treft.files import write_whole
from treft.study import studies
from treft.study.code_version import library_versions
from treft.study.protocol import Row, Study, StudyConfig
from treft.study.step import Plan, Step, Work, make_plan
from treft.study.store import RECORD
from treft.study.tables import write_table

__all__ = ["TABLE", "all_studies", "find_study", "plan_study"]

TABLE = "table"
"""Name of a study's last step."""


def all_studies() -> dict[str, Study]:
    """Every study in `treft/study/studies/`, by name."""
    modules = [f"{studies.__name__}.{found.name}" for found in iter_modules(studies.__path__)]
    return {study.name: study for study in map(_study, sorted(modules))}


def find_study(name: str) -> Study:
    """The study of this name.

    Raises:
        ConfigError: there is none.
    """
    known = all_studies()
    if name not in known:
        raise ConfigError(f"there is no study {name}; there are {', '.join(known)}.")
    return known[name]


def plan_study(study: Study, config: StudyConfig) -> Plan:
    """All steps of a study with their addresses, the table last.

    Raises:
        ConfigError: the configuration cannot be run.
    """
    steps = list(study.steps(config))
    used = {name for step in steps for name in step.inputs.values()}
    module = study.steps.__module__
    table = Step(
        TABLE,
        tabulate,
        _Tabulation(module),
        inputs={step.name: step.name for step in steps if step.name not in used},
        modules=(module,),
    )
    return make_plan([*steps, table])


@dataclass(frozen=True)
class _Tabulation:
    """Which study: the module with its STUDY."""

    module: str


def tabulate(work: Work[_Tabulation]) -> None:
    """Write `runs.*` (a row for each input), `table.*`, `plot.png` and `result.json`."""
    study = _study(work.config.module)
    runs: list[Row] = [
        json.loads((folder / "row.json").read_text("utf-8")) for folder in work.inputs.values()
    ]
    rows = study.table(runs)
    made_from = _origins(work.inputs)
    verdict = study.verdict(rows)
    write_table(work.folder, "runs", runs, made_from)
    write_table(work.folder, "table", rows, made_from)
    result = {
        "study": study.name,
        "claim": {**asdict(study.claim)},
        "verdict": verdict,
        "table": rows,
        "made_from": made_from,
    }
    write_whole(work.folder / "result.json", json.dumps(result, indent=1, ensure_ascii=False))
    study.plot(rows).savefig(work.folder / "plot.png", dpi=150, metadata={"Software": None})


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
    return {
        "sources": {record["function"]: record["code"]["sources"] for record in found},
        "libraries": {"treft": __version__, **library_versions()},
        "seeds": sorted({record["seed"] for record in found} - {None}),
        "machines": [machine for i, machine in enumerate(machines) if machine not in machines[:i]],
        "data": {role: digest for record in found for role, digest in record["data"].items()},
        "seconds": round(sum(record["seconds"] for record in found), 1),
        "steps": {name: folder.name for name, folder in inputs.items()},
    }


def _study(module: str) -> Study:
    study = import_module(module).STUDY
    assert isinstance(study, Study), f"{module}.STUDY is no Study"
    return study
