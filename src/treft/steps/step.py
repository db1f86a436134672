"""A step: a unit of work whose result is known by what it is made from.

A step's address is the hash of its function and the function's version, its config, its seed, the
addresses of its inputs and the digests of its data. What has the same address has the same result,
up to rounding, so it is computed once. Whoever changes what a function computes raises its version.
"""

from __future__ import annotations

import graphlib
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
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

    Raises:
        ConfigError: Counts that cannot be.
    """

    cpus: int = 1
    gpus: int = 0

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
        inputs: Folder of each input by its role, to be read only.
        data: Path by name, to be read only.
        seed: The step's seed; 0 if it has none.
    """

    config: Config
    folder: Path
    inputs: Mapping[str, Path]
    data: Mapping[str, Path]
    seed: int


@dataclass(frozen=True)
class Step(Generic[Config]):
    """A unit of work.

    Attributes:
        name: For people and for other steps' inputs; it does not count for the result.
        function: Of a module, not nested; it writes the result into `work.folder`.
        config: A frozen dataclass of what JSON can hold.
        inputs: Name of another step by the role that its result plays here.
        data: File or folder by role; contents count, the path does not.
        seed: None where nothing is drawn.
        resources: What the step takes while it runs.
    """

    name: str
    function: Callable[[Work[Config]], None]
    config: Config
    inputs: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Path] = field(default_factory=dict)
    seed: int | None = None
    resources: Resources = Resources()


@dataclass(frozen=True)
class PlannedStep:
    """A step with its address.

    Attributes:
        step: What to do.
        address: 64 hexadecimal digits.
        inputs: Address by role.
        record: What was hashed: function, version, config, seed, inputs, data.
    """

    step: Step[Any]
    address: str
    inputs: Mapping[str, str]
    record: Record


@dataclass(frozen=True)
class Plan:
    """Steps in an order in which each comes after its inputs."""

    steps: tuple[PlannedStep, ...]

    @property
    def by_address(self) -> dict[str, PlannedStep]:
        """Each unit of work once; two steps may be one, under two names."""
        found: dict[str, PlannedStep] = {}
        for planned in self.steps:
            found.setdefault(planned.address, planned)
        return found

    @property
    def results(self) -> tuple[PlannedStep, ...]:
        """Steps that are no other's input."""
        used = {address for planned in self.steps for address in planned.inputs.values()}
        return tuple(planned for planned in self.steps if planned.address not in used)

    def __getitem__(self, name: str) -> PlannedStep:
        """The step of this name."""
        return next(planned for planned in self.steps if planned.step.name == name)


def make_plan(steps: Iterable[Step[Any]]) -> Plan:
    """Check all steps and find their addresses, before anything runs.

    Raises:
        ConfigError: Two steps share a name, an input is unknown, inputs form a cycle, a config
            cannot be written as JSON, a function cannot be imported by name, or data is missing.
    """
    named: dict[str, Step[Any]] = {}
    for step in steps:
        if step.name in named:
            raise ConfigError(f"two steps are called {step.name}.")
        named[step.name] = step
    planned: dict[str, PlannedStep] = {}
    for name in _in_order(named):
        inputs = {role: planned[other].address for role, other in named[name].inputs.items()}
        planned[name] = _planned(named[name], inputs)
    return Plan(tuple(planned.values()))


def _in_order(named: Mapping[str, Step[Any]]) -> tuple[str, ...]:
    for step in named.values():
        for role, other in step.inputs.items():
            if other not in named:
                raise ConfigError(f"step {step.name}: its input {role} is {other}, which is none.")
    graph = {name: tuple(step.inputs.values()) for name, step in named.items()}
    try:
        return tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        raise ConfigError(f"steps wait for each other: {' -> '.join(error.args[1])}.") from error


def _planned(step: Step[Any], inputs: Record) -> PlannedStep:
    try:
        record = {
            "function": _importable(step.function),
            "version": version_of(step.function),
            "config": _plain_config(step.config),
            "seed": step.seed,
            "inputs": dict(sorted(inputs.items())),
            "data": {role: data_digest(path) for role, path in sorted(step.data.items())},
        }
    except ConfigError as error:
        raise ConfigError(f"step {step.name}: {error}") from error
    # canonical JSON: keys sorted, no blanks
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return PlannedStep(step, hashlib.sha256(text.encode()).hexdigest(), inputs, record)


def _reference(function: Callable[..., None]) -> str:
    return f"{function.__module__}:{function.__qualname__}"


def _importable(function: Callable[..., None]) -> str:
    """Returns `module:name`, if the function can be found by it in another process."""
    module, name = function.__module__, function.__qualname__
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if module == "__main__" or found is not function:
        raise ConfigError(
            f"its function {module}:{name} cannot be imported by that name: define it in a module, "
            "not inside a function or a script."
        )
    return _reference(function)


def _plain_config(config: object) -> Record:
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
