"""benchmarks/coverage.py as a module: tests run some designs of docs/statistics.md."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

__all__ = ["coverage"]

_PATH = Path(__file__).parents[3] / "benchmarks/coverage.py"
_SPEC = importlib.util.spec_from_file_location("treft_coverage", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
coverage = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = coverage  # dataclasses look their module up
_SPEC.loader.exec_module(coverage)
