"""The code's version is that of the files a step's module leads to, no more and no less."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from treft.errors import ConfigError
from treft.study.code_version import CodeVersions, library_versions

FILES = {
    "__init__.py": "from typing import TYPE_CHECKING\n"
    "if TYPE_CHECKING:\n    from madeup.late import Late\n",
    "steps.py": "from __future__ import annotations\n"
    "from typing import TYPE_CHECKING\n"
    "import json\n"
    "from . import near\n"
    "from madeup import Late\n"
    "if TYPE_CHECKING:\n    from madeup.seen_by_checkers import X\n"
    "else:\n    import madeup.otherwise\n"
    "def step(work):\n    from madeup.inner.deep import run\n"
    "try:\n    import madeup.tried\nexcept ImportError:\n    import madeup.instead\n",
    "near.py": "from treft.files import write_whole\n",
    "late.py": "class Late: ...\n",
    "otherwise.py": "",
    "tried.py": "",
    "instead.py": "",
    "seen_by_checkers.py": "X = 1\n",
    "inner/__init__.py": "",
    "inner/deep.py": "from ..further import thing\nrun = thing\n",
    "inner/unused.py": "",
    "further.py": "thing = 1\n",
    "unrelated.py": "",
}
COUNTS = {
    "__init__.py",
    "steps.py",
    "near.py",
    "late.py",
    "otherwise.py",
    "tried.py",
    "instead.py",
    "inner/__init__.py",
    "inner/deep.py",
    "further.py",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "madeup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "madeup"


def version() -> str:
    return CodeVersions().of("madeup.steps")


@pytest.mark.parametrize("name", sorted(FILES))
def test_an_edit_counts_exactly_in_what_the_module_leads_to(package: Path, name: str) -> None:
    before = version()
    path = package / name
    path.write_text(path.read_text() + "# edited\n")
    assert (version() != before) == (name in COUNTS)
    path.write_text(FILES[name])
    assert version() == before


def test_treft_counts_as_far_as_it_is_imported(package: Path) -> None:
    found = set(CodeVersions().closure("madeup.steps"))
    assert {name for name in found if name.startswith("treft")} == {"treft", "treft.files"}
    assert "json" not in found


def test_nothing_is_imported_to_find_out(package: Path) -> None:
    version()
    assert not [name for name in sys.modules if name.startswith("madeup")]


def test_it_finds_all_that_python_loads() -> None:
    code = (
        "import json, sys, treft.study.catalogue as c; c.all_studies();"
        "print(json.dumps([name for name in sys.modules if name.split('.')[0] == 'treft']))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(shown.stdout))
    studies = [name for name in loaded if name.startswith("treft.study.studies.")]
    assert len(studies) >= 2
    assert loaded <= set(CodeVersions().closure("treft.study.catalogue", *studies))


def test_what_a_finetune_does_leads_to_training_and_not_to_the_machinery() -> None:
    found = set(CodeVersions().closure("treft.study.organism_work"))
    assert {
        "treft.study.organism_training",
        "treft.training.trainer",
        "treft.organism.world",
    } <= found
    assert "treft.study.demo_arms" not in found  # the demo's
    scoring = {"treft.study.organism_score", "treft.organism.tasks_traces"}
    assert not found & scoring
    assert scoring <= set(CodeVersions().closure("treft.study.organism_score"))
    machinery = {"step", "store", "engine", "pool", "catalogue", "figures"}
    assert not found & {f"treft.study.{name}" for name in machinery}


@pytest.fixture
def broken(package: Path) -> Callable[[], str]:
    (package / "near.py").write_text("def (")
    return version


def test_a_file_that_is_no_python_is_named(broken: Callable[[], str]) -> None:
    with pytest.raises(ConfigError, match=r"near.py is no valid Python"):
        broken()


def test_versions_of_what_is_installed_and_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    found = library_versions()
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"]
    monkeypatch.setattr("treft.study.code_version.LIBRARIES", ("no-such-package",))
    assert library_versions() == {"no-such-package": ""}
