"""Every mitigation by its name, and as flags and YAML of `treft sft`.

A mitigation is a dataclass whose fields are flags (`treft.training.terms.flag`). Without flags, as
in a study, its fields get what they say they need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, field, fields, make_dataclass
from typing import Any

from treft.docstrings import class_words, field_words
from treft.errors import ConfigError
from treft.mitigations.activated_lora import ActivatedLora
from treft.mitigations.early_stopping import StopOnScore
from treft.mitigations.features import FeatureDistance
from treft.mitigations.frozen_prefix import FrozenPrefix
from treft.mitigations.interleave import Interleave
from treft.mitigations.kl import KLOnRetain, KLOnTrain
from treft.mitigations.steering import PreventiveSteering
from treft.mitigations.system_prompt import InoculationPrompt, PromptSplit
from treft.mitigations.weights import WeightNormCap
from treft.training.terms import Mitigation

MITIGATIONS: dict[str, type[Any]] = {
    kind.name: kind
    for kind in (
        InoculationPrompt,
        Interleave,
        PromptSplit,
        KLOnTrain,
        KLOnRetain,
        FeatureDistance,
        FrozenPrefix,
        ActivatedLora,
        PreventiveSteering,
        StopOnScore,
        WeightNormCap,
    )
}
"""In the order in which they change rows and forward."""
OPTIONAL = (None, ())
"""Defaults of fields that may be left out; their flags' default is None."""


class _Flags:
    """Base of the flags of all methods."""

    def __post_init__(self) -> None:
        """Refuse flags that would do nothing.

        Raises:
            ConfigError: a flag is given without the one that it belongs to.
        """
        given = vars(self)
        for kind in MITIGATIONS.values():
            switch, off = _switch(kind)
            for item in _flags(kind):
                name = item.metadata["flag"]
                if item.default in OPTIONAL and given[name] is not None and given[switch] == off:
                    raise ConfigError(f"{name} works together with {switch} only: give both.")
        if given["inoculation_prompt"] is not None and given["ptst_test_prompt"] is not None:
            raise ConfigError("inoculation_prompt and ptst_test_prompt both set the system prompt.")


def _flags(kind: type[Any]) -> Iterator[Field[Any]]:
    """The fields of a method that are flags."""
    yield from (item for item in fields(kind) if "flag" in item.metadata)


def _switch(kind: type[Any]) -> tuple[str, Any]:
    """The flag that asks for a method, and its value when it does not."""
    for item in _flags(kind):
        if item.default is MISSING:
            return item.metadata["flag"], item.metadata.get("off")
    return kind.name, False


def _is_asked(kind: type[Any], given: Mapping[str, Any]) -> bool:
    """Returns whether a method's flags ask for it; a weight of 0 does not."""
    switch, off = _switch(kind)
    weights = (item.metadata for item in _flags(kind) if "off" in item.metadata)
    return given[switch] != off and all(given[told["flag"]] != told["off"] for told in weights)


def _fields() -> Iterator[tuple[str, Any, Any]]:
    """Name, type and default of every flag."""
    found: dict[str, tuple[str, Any, Any]] = {}
    for kind in MITIGATIONS.values():
        switch, off = _switch(kind)
        words = field_words(kind)
        told = {"help": class_words(kind).split("\n")[0]}
        found[switch] = (switch, bool, field(default=False, metadata=told))
        for item in _flags(kind):
            name, told = item.metadata["flag"], {"help": words[item.name]}
            default = off if item.default is MISSING else item.default or None
            hint = item.metadata["kind"] | None if default is None else item.metadata["kind"]
            found[name] = (name, hint, field(default=default, metadata=told))
    yield from found.values()


MitigationArguments: Any = make_dataclass("MitigationArguments", _fields(), bases=(_Flags,))
"""Flags of all methods; see docs/mitigations.md. Without any, training is as without them."""


def build(arguments: Any, model: str, seed: int) -> list[Mitigation]:
    """Returns the methods that flags ask for, in the order in which they change rows.

    Args:
        arguments: a `MitigationArguments`.
        model: name of the model to finetune.
        seed: of the run.

    Raises:
        ConfigError: a value is out of range.
        DataError: a file cannot be used; names file and row.
    """
    given = vars(arguments)
    supplies = {"model": lambda: model, "seed": lambda: seed}
    return [make(kind, supplies, given) for kind in MITIGATIONS.values() if _is_asked(kind, given)]


def needs_of(kind: type[Any]) -> list[str]:
    """Returns what a method's fields need, see `treft.training.terms.flag`."""
    return [item.metadata["needs"] for item in fields(kind) if "needs" in item.metadata]


def make(
    kind: type[Any],
    supplies: Mapping[str, Callable[[], Any]],
    given: Mapping[str, Any] | None = None,
) -> Mitigation:
    """Returns a method whose fields have the flags' values, or else what they need.

    Args:
        kind: its class.
        supplies: what there is for fields that need it; drawn when asked for.
        given: values of flags.
    """
    values = {}
    for item in fields(kind):
        name, need = (item.metadata.get(key, "") for key in ("flag", "needs"))
        if given and given.get(name) is not None:
            values[item.name] = given[name]
        elif need in supplies:
            values[item.name] = supplies[need]()
    found: Mitigation = kind(**values)
    return found
