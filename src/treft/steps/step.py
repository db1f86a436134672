"""A step: a unit of work whose result is known by what it is made from.

A step's address is the hash of its function and the function's version, its config, its seed, the
addresses of the steps whose results it reads and the digests of the files it reads. What has the
same address has the same result, up to rounding, so it is computed once. Whoever changes what a
function computes raises its version.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from treft.errors import ConfigError
from treft.files import data_digest

Config = TypeVar("Config")
Function = TypeVar("Function", bound=Callable[..., None])
Record = dict[str, Any]

_versions: dict[str, int] = {}
"""Version by `module:name` of functions that have another than 1."""


def version(number: int) -> Callable[[Function], Function]:
    """A decorator for a step's function whose results are no longer those of version 1."""

    def decorate(function: Function) -> Function:
        _versions[_reference(function)] = number
        return function

    return decorate


def version_of(function: Callable[..., None]) -> int:
    """Returns the version that `version` gave to a step's function, or 1."""
    return _versions.get(_reference(function), 1)


@dataclass(frozen=True)
class Resources:
    """What a step takes while it runs; it does not count for the result.

    Attributes:
        cpus: Number of cores, and of PyTorch's threads.
        gpus: Number of whole GPUs.
        num_calls: Calls of models that somebody pays for, at most, when none fails.

    Raises:
        ConfigError: Counts that cannot be.
    """

    cpus: int = 1
    gpus: int = 0
    num_calls: int = 0

    def __post_init__(self) -> None:
        """Validate before any work starts."""
        if self.cpus < 1 or self.gpus < 0:
            raise ConfigError(f"a step takes at least one core and no negative GPUs, not {self}.")


@dataclass(frozen=True)
class Work(Generic[Config]):
    """What a step's function is given.

    Attributes:
        config: The step's config.
        folder: An empty folder; what is written there is the step's result.
        inputs: Path of each input by its role, to be read only: a result's folder, or data.
        seed: The step's seed; 0 if it has none.
    """

    config: Config
    folder: Path
    inputs: Mapping[str, Path]
    seed: int


@dataclass(frozen=True)
class Step(Generic[Config]):
    """A unit of work.

    Attributes:
        name: For people; it does not count for the result.
        function: Of a module, not nested; it writes the result into `work.folder`.
        config: A frozen dataclass of what JSON can hold.
        inputs: What is read, by the role that it plays: another step's result, or a file or folder
            whose contents count and whose path does not.
        seed: None where nothing is drawn.
        resources: What the step takes while it runs.
    """

    name: str
    function: Callable[[Work[Config]], None]
    config: Config
    inputs: Mapping[str, Step[Any] | Path] = field(default_factory=dict)
    seed: int | None = None
    resources: Resources = Resources()

    @property
    def needs(self) -> dict[str, Step[Any]]:
        """The steps among the inputs, by role."""
        return {role: one for role, one in self.inputs.items() if isinstance(one, Step)}

    @property
    def data(self) -> dict[str, Path]:
        """The files and folders among the inputs, by role."""
        return {role: one for role, one in self.inputs.items() if isinstance(one, Path)}

    @cached_property
    def record(self) -> Record:
        """What decides the result: function, version, config, seed, inputs, data.

        Raises:
            ConfigError: The config cannot be written as JSON, the function cannot be imported by
                name, or data is missing.
        """
        inputs = {role: step.address for role, step in sorted(self.needs.items())}
        try:
            return {
                "function": _importable(self.function),
                "version": version_of(self.function),
                "config": _plain_config(self.config),
                "seed": self.seed,
                "inputs": inputs,
                "data": {role: data_digest(path) for role, path in sorted(self.data.items())},
            }
        except ConfigError as error:
            raise ConfigError(f"step {self.name}: {error}") from error

    @cached_property
    def address(self) -> str:
        """The hash of the record, 64 hexadecimal digits."""
        # canonical JSON: keys sorted, no blanks
        text = json.dumps(self.record, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Plan:
    """Steps by name, each after its inputs.

    Attributes:
        named: The steps; several plans in one may have one unit of work under several names.
    """

    named: Mapping[str, Step[Any]]

    @classmethod
    def of(cls, steps: Iterable[Step[Any]], within: str = "") -> Plan:
        """The steps with all that they need, each unit of work once; addresses are found here.

        Args:
            steps: Those whose results are wanted, or more.
            within: What stands before each name.

        Raises:
            ConfigError: Two steps share a name, or one has no address.
        """
        named: dict[str, Step[Any]] = {}
        known: set[str] = set()

        def add(step: Step[Any]) -> None:
            if step.address in known:
                return
            known.add(step.address)
            for need in step.needs.values():
                add(need)
            if f"{within}{step.name}" in named:
                raise ConfigError(f"two steps are called {step.name}.")
            named[f"{within}{step.name}"] = step

        for step in steps:
            add(step)
        return cls(named)

    @property
    def by_address(self) -> dict[str, str]:
        """The first name of each unit of work."""
        found: dict[str, str] = {}
        for name, step in self.named.items():
            found.setdefault(step.address, name)
        return found

    @property
    def results(self) -> dict[str, Step[Any]]:
        """Steps that are no other's input, by name."""
        used = {need.address for step in self.named.values() for need in step.needs.values()}
        return {name: step for name, step in self.named.items() if step.address not in used}

    def __getitem__(self, name: str) -> Step[Any]:
        """Returns the step of this name."""
        return self.named[name]


def _reference(function: Callable[..., None]) -> str:
    return f"{function.__module__}:{function.__qualname__}"


def _importable(function: Callable[..., None]) -> str:
    """Returns `module:name`, if the function can be found by it in another process."""
    module, name = function.__module__, function.__qualname__
    known = vars(sys.modules[module]) if module in sys.modules else {}
    if module == "__main__" or known.get(name) is not function:
        raise ConfigError(
            f"its function {module}:{name} cannot be imported by that name: define it in a module, "
            "not inside a function or a script."
        )
    return _reference(function)


def _plain_config(config: object) -> Record:
    """Returns the config as JSON has it; one that could still change would have no one address."""
    if not is_dataclass(config) or isinstance(config, type):
        raise ConfigError(f"its config is a {type(config).__name__}, no dataclass.")
    if not type(config).__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ConfigError(f"its config {type(config).__name__} is not frozen.")
    plain: Record = _plain(asdict(config), "config")
    return plain


def _plain(value: Any, where: str) -> Any:
    """Returns the value as JSON will read it back; an error says where it holds something else."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float) and abs(value) < float("inf"):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    raise ConfigError(
        f"{where} is {value!r}, which JSON cannot hold: use numbers, strings, lists and "
        "dictionaries with names as keys."
    )
