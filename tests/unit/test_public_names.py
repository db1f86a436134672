"""What `treft` promises: its names, and a cheap import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import treft

SOURCE = Path(treft.__file__).parent
CONTRACT = {
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
}


def test_all_is_the_contract() -> None:
    assert set(treft.__all__) == CONTRACT
    assert list(treft.__all__) == sorted(treft.__all__)
    for name in treft.__all__:
        assert getattr(treft, name).__name__ == name
    assert set(treft.__all__) <= set(dir(treft))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = treft.nonsense


def test_importing_treft_imports_nothing_heavy() -> None:
    code = (
        "import sys, treft\n"
        "print(*[name for name in ('torch', 'transformers', 'trl', 'peft', 'typer', 'rich')"
        " if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == ""
