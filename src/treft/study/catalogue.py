"""All studies by name, and the plan of one or more: their own steps, then a table for each."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from matplotlib.text import Text

from treft.errors import ConfigError
from treft.files import write_whole
from treft.steps.step import Plan, Step, Work
from treft.steps.store import RECORD, library_versions
from treft.study.claims import CLAIMS_FILE, chosen
from treft.study.figures import shown
from treft.study.model_chains import check_strengths
from treft.study.protocol import NotPossibleError, Row, Study, StudyConfig
from treft.study.studies import gains, mitigations, perturbing, states, tasks, wide
from treft.study.tables import write_table

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


FAMILIES = (gains, mitigations, perturbing, states, tasks, wide)
"""The files of `treft/study/studies/`; each has its studies in `STUDIES`."""


def all_studies() -> dict[str, Study]:
    """Returns every study by name, in the order of the names."""
    found = {study.name: study for family in FAMILIES for study in family.STUDIES}
    return dict(sorted(found.items()))


def find_studies(names: Iterable[str]) -> dict[str, Study]:
    """Returns the studies of these names, each once; `all` stands for every one.

    Raises:
        ConfigError: There is none of a name.
    """
    return chosen(names, all_studies())


def plan_study(study: Study, config: StudyConfig) -> Plan:
    """All steps of a study with their addresses, the table last.

    Raises:
        ConfigError: the configuration cannot be run.
    """
    return _checked(Plan.of([_table(study, config)]), config)


def plan_studies(studies: Iterable[Study], config: StudyConfig) -> Plan:
    """The steps of several studies, each called `STUDY/NAME`; equal steps share an address.

    Raises:
        ConfigError: the configuration cannot be run; names the study.
    """
    return _checked(_together(_plan_within(study, config) for study in studies), config)


def plan_possible(studies: Mapping[str, Study], config: StudyConfig) -> tuple[Plan, dict[str, str]]:
    """As `plan_studies`, of those studies that can run; and why each other cannot, by name.

    Raises:
        ConfigError: something is wrong in itself, such as a setting.
        DataError: a file cannot be used.
    """
    plans: list[Plan] = []
    reasons: dict[str, str] = {}
    for name, study in studies.items():
        try:
            plans.append(_plan_within(study, config))
        except NotPossibleError as error:
            reasons[name] = str(error).removeprefix(_of_study(study))
    found = _together(plans)
    return (_checked(found, config) if plans else found), reasons


def table_name(study: Study) -> str:
    """Of a study's last step in a plan of several."""
    return f"{study.name}/{TABLE}"


def _checked(plan: Plan, config: StudyConfig) -> Plan:
    if config.model is not None:
        check_strengths(config.model, plan.named.values())
    return plan


def _together(plans: Iterable[Plan]) -> Plan:
    return Plan({name: step for plan in plans for name, step in plan.named.items()})


def _of_study(study: Study) -> str:
    """How an error of several studies begins."""
    return f"study {study.name}: "


def _plan_within(study: Study, config: StudyConfig) -> Plan:
    try:
        return Plan.of([_table(study, config)], f"{study.name}/")
    except ConfigError as error:
        raise type(error)(f"{_of_study(study)}{error}") from error


def _table(study: Study, config: StudyConfig) -> Step[Any]:
    """The last step, which makes the table of those that no other one needs."""
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
