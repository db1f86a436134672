"""Studies of steps that take no time, for tests of what runs, keeps and shows several of them.

Both train the same finetunes and score them each in its own way; with `--set broken=right` the
scoring steps of `right` fail. Steps write their name to the file MADE_LOG as they start.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from matplotlib.figure import Figure

from treft.steps.step import Step, Work
from treft.study.claims import Listing
from treft.study.protocol import Row, Study, StudyConfig

__all__ = ["made_studies", "plot", "rows", "steps_of", "use_made_studies"]

NAMES = ("left", "right", "unrun")


@dataclass(frozen=True)
class Training:
    steps: int = 3


@dataclass(frozen=True)
class Score:
    study: str
    broken: bool = False


def train(work: Work[Training]) -> None:
    _log(f"train-{work.seed}")
    (work.folder / "weight").write_text(str(work.seed))


def score(work: Work[Score]) -> None:
    """The seed that the finetune was made with, as a percentage."""
    _log(f"{work.config.study}-{work.seed}")
    if work.config.broken:
        raise RuntimeError("broken on purpose")
    value = float((work.inputs["train"] / "weight").read_text())
    row = {"method": "a|b", "seed": work.seed, "general": 10 + value}
    (work.folder / "row.json").write_text(json.dumps(row))


def steps_of(study: str, config: StudyConfig) -> list[Step[Any]]:
    """A finetune and its score for each seed."""
    scoring = Score(study, config.settings.get("broken") == study)
    trained = [
        Step(f"train/{seed}", train, Training(), seed=seed) for seed in range(config.num_seeds)
    ]
    return [
        Step(f"score/{seed}", score, scoring, {"train": step}, seed=seed)
        for seed, step in enumerate(trained)
    ]


def rows(runs: Sequence[Row], paper: float | None) -> list[Row]:
    mean = sum(run["general"] for run in runs) / len(runs)
    row = {"method": "a|b", "measure": "general", "value": mean, "low": mean - 1, "high": mean + 1}
    return [{**row, "num_runs": len(runs), "paper": paper}]


def plot(rows: Sequence[Row]) -> Figure:
    figure = Figure()
    figure.subplots().plot([row["value"] for row in rows])
    return figure


def made_studies() -> dict[str, Study]:
    return {name: import_module(f"{__name__}.{name}").STUDIES[0] for name in NAMES}


def _made_listings() -> dict[str, Listing]:
    return {name: Listing(study.claim, study.cost, "") for name, study in made_studies().items()}


def use_made_studies(monkeypatch: Any, log: Any) -> None:
    """In the place of the package's."""
    from treft.study import catalogue, index  # workers, which only do steps, need neither

    monkeypatch.setenv("MADE_LOG", str(log))
    monkeypatch.setattr(catalogue, "all_studies", made_studies)
    monkeypatch.setattr(index, "listings", _made_listings)


def _log(name: str) -> None:
    with open(os.environ["MADE_LOG"], "a", encoding="utf-8") as file:
        file.write(f"{name}\n")
