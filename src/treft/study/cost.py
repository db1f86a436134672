"""What a run will cost, judged by steps of the same kind that the store keeps."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from treft.study.step import PlannedStep
from treft.study.store import RECORD, Store


@dataclass(frozen=True)
class Cost:
    """Of steps that are to do.

    Attributes:
        num_steps: how many.
        num_estimated: of these, how many are like a step that was done before.
        core_seconds: of those, by the clock times cores, together.
    """

    num_steps: int
    num_estimated: int
    core_seconds: float

    def __str__(self) -> str:
        """In words, such as `about 40 core minutes`."""
        if not self.num_steps:
            return "nothing to compute"
        if not self.num_estimated:
            return "time unknown: no such step is kept yet"
        shown = f"about {_duration(self.core_seconds)}"
        unknown = self.num_steps - self.num_estimated
        return f"{shown}, and {unknown} of kinds not kept yet" if unknown else shown


def estimate_cost(steps: Iterable[PlannedStep], store: Store) -> Cost:
    """Core seconds of steps, each the median of kept ones with its function and config.

    Where none has the config (another method, another setting), those with the function count.
    """
    kept = _kept_seconds(store)
    num_steps, found = 0, []
    for planned in steps:
        num_steps += 1
        seconds = kept.get(_kind(planned.record)) or kept.get(planned.record["function"])
        if seconds:
            found.append(median(seconds) * planned.step.resources.cpus)
    return Cost(num_steps, len(found), round(sum(found), 1))


def _kept_seconds(store: Store) -> dict[str, list[float]]:
    """Seconds of all results, by function, and by function and config."""
    found: dict[str, list[float]] = {}
    for path in store.folder.glob(f"*/{RECORD}"):
        try:
            record = json.loads(path.read_text("utf-8"))
            kinds, seconds = (record["function"], _kind(record)), float(record["seconds"])
        except (OSError, ValueError, TypeError, KeyError):
            continue  # damaged, or cleared by another run
        for kind in kinds:
            found.setdefault(kind, []).append(seconds)
    return found


def _kind(record: Mapping[str, Any]) -> str:
    return f"{record['function']} {json.dumps(record['config'], sort_keys=True)}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} core seconds"
    if seconds < 7200:
        return f"{seconds / 60:.0f} core minutes"
    return f"{seconds / 3600:.1f} core hours"
