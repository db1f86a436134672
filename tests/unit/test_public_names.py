"""What `treft` promises: its names, a cheap import, and imports that point one way."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
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
LAYERS = (
    ("errors", "files", "extras"),
    ("rendering", "turns", "regions", "states", "drift", "data", "offloading"),
    ("recording", "requests", "identity", "reference", "origin", "documents", "batched_drift"),
    ("batching", "residual", "perturbation", "generation_options"),
    ("regularizer", "patching", "patch_spec", "activation", "generation"),
    ("training",),
    ("hub", "published"),
    (
        "metrics",
        "organism",
        "loading",
        "arms",
        "organism_training",
        "organism_mitigations",
        "demo",
        "report",
        "evaluation",
        "attribution",
        "mitigations",
    ),
    ("study",),
    ("cli",),
)
"""Modules and packages from the bottom up; one may import from its own layer and from below."""


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


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = ("treft", *path.relative_to(SOURCE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of the package that a module imports when it is loaded, not for types or later."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in loaded(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")
            start = above[: len(above) - node.level + 1] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            if source in known:
                for alias in node.names:
                    within = f"{source}.{alias.name}"
                    yield within if within in known else source


def loaded(tree: ast.AST) -> Iterator[ast.AST]:
    """Statements that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from loaded(node)


def graph() -> dict[str, set[str]]:
    """Module -> modules that it imports; importing a package's name counts as the package."""
    known = modules()
    return {
        name: {found for found in imports(name, path, known) if found != name}
        for name, path in known.items()
    }


def test_the_reader_of_imports_sees_what_is_there() -> None:
    found = graph()
    assert "treft.states" in found["treft.recording"]
    assert "treft.recording" in found["treft.reference"]
    assert "treft.organism.lexicon" in found["treft.organism.world"]  # a relative import
    assert found["treft.errors"] == set()
    assert found["treft"] == set()  # names are imported when first used


def test_imports_form_no_cycle() -> None:
    graphlib.TopologicalSorter(graph()).prepare()  # raises CycleError with the cycle


def level(module: str) -> int:
    """The layer that a module belongs to."""
    part = module.split(".")[1]
    found = [number for number, layer in enumerate(LAYERS) if part in layer]
    assert len(found) == 1, f"{module}: give {part} its place in LAYERS"
    return found[0]


def test_imports_point_one_way() -> None:
    upward = [
        f"{module} imports {other}"
        for module, found in graph().items()
        for other in found
        if "treft" not in (module, other) and level(other) > level(module)
    ]
    assert upward == []


def test_the_core_needs_no_package_of_training_or_evaluation() -> None:
    """It installs without the extras `train` and `eval`."""
    extras = {"trl", "peft", "accelerate", "datasets", "inspect_ai"}
    core = [module for layer in LAYERS[: LAYERS.index(("training",))] for module in layer]
    for name in core:
        tree = ast.parse((SOURCE / f"{name}.py").read_text(encoding="utf-8"))
        roots = {
            (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else alias.name
            for node in loaded(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        assert not roots & extras, name


def test_every_module_says_what_it_offers() -> None:
    for name, path in modules().items():
        body = ast.parse(path.read_text(encoding="utf-8")).body
        stated = [
            node
            for node in body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ]
        is_bare_package = path.name == "__init__.py" and len(body) <= 2
        assert len(stated) == 1 or is_bare_package, f"{name} has no __all__"
