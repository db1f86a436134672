"""The models that a command compares, as options name them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from treft.errors import ConfigError
from treft.evaluation.audit_plan import AuditArm

_NOT_THE_BASES = ("adapter", "patch", "reference", "base", "allow_other_base")
"""Arguments of a `treft/` model that its base does not have."""


def parse_arms(models: Sequence[str], arguments: Sequence[str]) -> dict[str, AuditArm]:
    """Arms by name, each with its arguments.

    Args:
        models: Inspect model names, or ARM=NAME each; an arm without a name is called by the last
            part of its model's.
        arguments: NAME=VALUE for all arms, or ARM.NAME=VALUE for one.

    Raises:
        ConfigError: two arms have one name, or an argument is for none of them.
    """
    names: dict[str, str] = {}
    for given in models:
        name, found, rest = given.partition("=")
        if not found or "/" in name:
            name, rest = "", given
        name = name or _free_name(rest.rstrip("/").rpartition("/")[2], names)
        if name in names:
            raise ConfigError(f"two arms are called {name}.")
        names[name] = rest
    own: dict[str, dict[str, Any]] = {name: {} for name in names}
    for given in arguments:
        key, found, text = given.partition("=")
        if not found or not key:
            raise ConfigError(f"-M {given}: write NAME=VALUE, or ARM.NAME=VALUE.")
        arm, dot, rest = key.rpartition(".")
        if dot and arm not in own:
            raise ConfigError(f"-M {given}: no arm is called {arm}; there are {', '.join(own)}.")
        for name in [arm] if dot else own:
            own[name][rest] = _value(given, text)
    return {name: AuditArm(model=names[name], args=own[name]) for name in names}


def _free_name(wanted: str, taken: dict[str, str]) -> str:
    """A name for a model that was given none."""
    count = 1
    while (name := wanted if count == 1 else f"{wanted}-{count}") in taken:
        count += 1
    return name


def _value(given: str, text: str) -> Any:
    """A provider's argument as Inspect reads it: YAML, or several words with commas between."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"-M {given}: the value is no YAML.") from None
    return value.split(",") if isinstance(value, str) and "," in value else value


def with_base(
    arms: dict[str, AuditArm], base: str | None
) -> tuple[dict[str, AuditArm], str | None]:
    """The arms, and which of them is the base.

    Where none is named, it is the arm called `base`, or one is added: the first `treft/` arm
    without its adapter and patch, or the model that it is patched from. Else there is none.
    """
    if base is not None:
        return arms, base
    if "base" in arms:
        return arms, "base"
    for arm in arms.values():
        provider, _, _ = arm.model.partition("/")
        origin = arm.args.get("base")
        if provider != "treft" or not ("adapter" in arm.args or origin):
            continue
        rest = {key: value for key, value in arm.args.items() if key not in _NOT_THE_BASES}
        name = f"treft/{origin}" if origin else arm.model
        return {"base": AuditArm(model=name, args=rest), **arms}, "base"
    return arms, None
