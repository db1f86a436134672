"""Finetunes that stay narrow; see README.md for the files and docs/ for the rest.

Names are imported when first used, so that `import treft` costs nothing and training's packages
are needed by training alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treft.chat.regions import ChatRegions, find_regions
    from treft.core.recording import record
    from treft.core.reference import ReferenceBank
    from treft.core.regularizer import KVRegularizer
    from treft.core.states import KeyValue, capture
    from treft.models.repair import RepairedModel, generate, patch
    from treft.training import TReFTConfig, TReFTTrainer

__version__ = "0.1.0"
__all__ = [
    "ChatRegions",
    "KVRegularizer",
    "KeyValue",
    "ReferenceBank",
    "RepairedModel",
    "TReFTConfig",
    "TReFTTrainer",
    "capture",
    "find_regions",
    "generate",
    "patch",
    "record",
]

_HOMES = {
    "ChatRegions": "chat.regions",
    "KVRegularizer": "core.regularizer",
    "KeyValue": "core.states",
    "ReferenceBank": "core.reference",
    "RepairedModel": "models.repair",
    "TReFTConfig": "training",
    "TReFTTrainer": "training",
    "capture": "core.states",
    "find_regions": "chat.regions",
    "generate": "models.repair",
    "patch": "models.repair",
    "record": "core.recording",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module 'treft' has no attribute {name!r}")
    return getattr(import_module(f"treft.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
