"""benchmarks/coverage.py and its designs as modules: tests run some rows of docs/statistics.md."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["coverage", "percent_covered", "studies"]


def _load(file: str, name: str) -> ModuleType:
    path = Path(__file__).parents[3] / "benchmarks" / file
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses, and the other file, look it up
    spec.loader.exec_module(module)
    return module


studies = _load("simulated_studies.py", "simulated_studies")
coverage = _load("coverage.py", "treft_coverage")  # `coverage` is a package


def percent_covered(design: Any, num_studies: int) -> float:
    """By the reported interval, which each study must have."""
    found = coverage.measure(design, num_studies, seed=1, methods=["reported"])["reported"]
    assert found.num_none == 0
    return float(found.percent)
