"""The version of a step's code: a hash of each source file that its module imports or leads to.

Files are found and read without importing them. What counts lies inside treft or inside the
top-level package (or the single file) that the step's module belongs to; other packages count by
their versions. Imports inside functions count, imports for type checkers do not.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TypeGuard

from treft.errors import ConfigError

LIBRARIES = ("torch", "transformers", "peft", "trl")
"""Packages whose versions can change a result."""


def library_versions() -> dict[str, str]:
    """Version by package; empty for one that is not installed."""
    return {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


class CodeVersions:
    """Reads each source file once; make a new one to see files that changed since."""

    def __init__(self) -> None:
        self._sources: dict[str, _Source | None] = {}
        self._roots: dict[str, Path | None] = {}
        self._hashes: dict[tuple[str, ...], str] = {}

    def of(self, *modules: str) -> str:
        """Hash of all files that importing these modules, or calling into them, can run.

        Raises:
            ConfigError: there is no such module, or one is no valid Python.
        """
        if modules not in self._hashes:
            digest = hashlib.sha256()
            for name, source in sorted(self.closure(*modules).items()):
                digest.update(f"{name}\0{hashlib.sha256(source).hexdigest()}\n".encode())
            self._hashes[modules] = digest.hexdigest()
        return self._hashes[modules]

    def closure(self, *modules: str) -> dict[str, bytes]:
        """Contents of these files by module name."""
        scope = {"treft", *(_root(name) for name in modules)}
        for name in modules:
            if self._source(name) is None:
                raise ConfigError(f"there is no source file of the module {name}.")
        found: dict[str, bytes] = {}
        waiting = list(modules)
        while waiting:
            name = waiting.pop()
            source = self._source(name) if _root(name) in scope else None
            if source is None or name in found:
                continue
            found[name] = source.content
            names = [pair for pair in source.names if _root(pair[0]) in scope]
            waiting += [*_packages_of(name), *source.imports, *self._lazy(names)]
        return found

    def _lazy(self, names: Iterable[tuple[str, str]]) -> Iterator[str]:
        """Homes of names that a package imports when they are first used.

        Such packages name them for type checkers, as `treft/__init__.py` does.
        """
        for package, name in names:
            owner = self._source(package)
            if owner is not None and name in owner.lazy:
                yield owner.lazy[name]

    def _source(self, name: str) -> _Source | None:
        if name not in self._sources:
            path = self._path(name)
            self._sources[name] = None if path is None else _Source(name, path)
        return self._sources[name]

    def _path(self, name: str) -> Path | None:
        """The file of a module, found in its top-level package's folder."""
        root, *parts = name.split(".")
        if root not in self._roots:
            spec = find_spec(root)
            origin = spec.origin if spec is not None and spec.has_location else None
            is_source = origin is not None and origin.endswith(".py")
            self._roots[root] = Path(origin) if origin is not None and is_source else None
        start = self._roots[root]
        if start is None or not parts:
            return start
        if start.name != "__init__.py":
            return None
        place = start.parent.joinpath(*parts)
        candidates = (place / "__init__.py", place.with_name(f"{parts[-1]}.py"))
        return next((path for path in candidates if path.is_file()), None)


class _Source:
    """One module's file and what it imports."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self.content = path.read_bytes()

    @cached_property
    def imports(self) -> list[str]:
        """Names that may be modules: `from a import b` gives both a and a.b."""
        return [name for node in _statements(self._tree) for name in self._modules(node)]

    @cached_property
    def names(self) -> list[tuple[str, str]]:
        """Pairs (module, name) of `from module import name`."""
        return [pair for node in _statements(self._tree) for pair in self._pairs(node)]

    @cached_property
    def lazy(self) -> dict[str, str]:
        """Module by name, of what is imported for type checkers only."""
        return {
            name: module
            for check in _statements(self._tree, for_type_checkers=True)
            for module, name in self._pairs(check)
        }

    @cached_property
    def _tree(self) -> ast.Module:
        try:
            return ast.parse(self.content, filename=str(self.path))
        except SyntaxError as error:
            raise ConfigError(f"{self.path} is no valid Python: {error}.") from error

    def _modules(self, node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from (*_packages_of(alias.name), alias.name)
        for module, name in self._pairs(node):
            yield from (*_packages_of(module), module, f"{module}.{name}")

    def _pairs(self, node: ast.AST) -> Iterator[tuple[str, str]]:
        if not isinstance(node, ast.ImportFrom):
            return
        package = self.name.split(".")
        if self.path.name != "__init__.py":
            package = package[:-1]
        above = package[: len(package) - node.level + 1] if node.level else []
        module = ".".join([*above, *([node.module] if node.module else [])])
        yield from ((module, alias.name) for alias in node.names)


_TYPE_CHECKS = ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _statements(tree: ast.AST, for_type_checkers: bool = False) -> Iterator[ast.AST]:
    """All statements that run, or all that only a type checker sees."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, (ast.stmt, ast.ExceptHandler, ast.match_case)):
            continue
        if not _is_for_type_checkers(node):
            if not for_type_checkers:
                yield node
            yield from _statements(node, for_type_checkers)
        elif for_type_checkers:
            yield from ast.walk(node)
        else:
            for other in node.orelse:
                yield from (other, *_statements(other))


def _is_for_type_checkers(node: ast.AST) -> TypeGuard[ast.If]:
    return isinstance(node, ast.If) and ast.unparse(node.test) in _TYPE_CHECKS


def _root(name: str) -> str:
    return name.partition(".")[0]


def _packages_of(name: str) -> list[str]:
    """Packages around a module, which are imported before it."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]
