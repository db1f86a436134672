"""The models of an audit: as options name them, loaded, and told apart by their weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import yaml
from inspect_ai.model import Model, get_model
from pydantic import BaseModel, ConfigDict

from treft.errors import ConfigError, TreftError
from treft.evaluation.local_model import LocalOptions
from treft.evaluation.prompts import PromptTemplate, template_of
from treft.judging.judge import one_line
from treft.models.loading import LoadOptions, load_model, load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

_ARM_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_NOT_THE_BASES = ("adapter", "patch", "reference", "base", "allow_other_base")
"""Arguments of a `treft/` model that its base does not have."""


class AuditArm(BaseModel):
    """One model that answers.

    Attributes:
        model: Its Inspect model name.
        args: The arguments of its provider.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    args: dict[str, Any] = {}

    @property
    def local_name(self) -> str | None:
        """Returns the folder or hub id of a model that our provider runs here, else None."""
        provider, _, name = self.model.partition("/")
        return name if provider == "treft" else None

    def load(self) -> Model:
        """Returns the model; it is let go with the last reference to it.

        Raises:
            ConfigError: It cannot be loaded, or an argument is wrong.
        """
        try:
            return get_model(self.model, memoize=False, **self.args)
        except TreftError:
            raise
        except Exception as error:  # providers raise what they like
            raise ConfigError(
                f"the model {self.model} cannot be loaded: {one_line(error)}"
            ) from None

    def fingerprint(self, model: Model) -> str | None:
        """Returns what our provider tells Inspect's cache by; others know nothing of weights."""
        return model.api.base_url if self.local_name else None

    def own_base(self) -> AuditArm | None:
        """Returns the arm without its adapter and patch, or the model that it is patched from."""
        origin = self.args.get("base")
        if not self.local_name or not ("adapter" in self.args or origin):
            return None
        rest = {key: value for key, value in self.args.items() if key not in _NOT_THE_BASES}
        return AuditArm(model=f"treft/{origin}" if origin else self.model, args=rest)


Arms = dict[str, AuditArm]


def parse_arms(models: Sequence[str], arguments: Sequence[str]) -> Arms:
    """Returns arms by name, each with its arguments.

    Args:
        models: Inspect model names, or ARM=NAME each; an arm without a name is called by the last
            part of its model's.
        arguments: NAME=VALUE for all arms, or ARM.NAME=VALUE for one.

    Raises:
        ConfigError: Two arms have one name, or an argument is for none of them.
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


def _free_name(wanted: str, taken: Mapping[str, str]) -> str:
    """Returns a name for a model that was given none."""
    count = 1
    while (name := wanted if count == 1 else f"{wanted}-{count}") in taken:
        count += 1
    return name


def _value(given: str, text: str) -> Any:
    """Returns an argument as Inspect reads it: YAML, or several words with commas between."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"-M {given}: the value is no YAML.") from None
    return value.split(",") if isinstance(value, str) and "," in value else value


def with_base(arms: Arms, base: str | None) -> tuple[Arms, str | None]:
    """Returns the arms, and which of them is the base.

    Where none is named, it is the arm called `base`, or one is added: the first `treft/` arm
    without its adapter and patch, or the model that it is patched from. Else there is none.
    """
    if base is not None or "base" in arms:
        return arms, base or "base"
    added = next(filter(None, (arm.own_base() for arm in arms.values())), None)
    return (arms, None) if added is None else ({"base": added, **arms}, "base")


def joined(arms: Arms, earlier: Arms, base: str | None) -> Arms:
    """Returns the arms of this and of the earlier run, the base first.

    Raises:
        ConfigError: An arm has no name, is not what it was, or the base is none of them.
    """
    for name, arm in arms.items():
        if not _ARM_NAME.fullmatch(name):
            raise ConfigError(f"an arm's name is letters, digits, '.', '_' and '-', not {name!r}.")
        if earlier.get(name, arm) != arm:
            raise ConfigError(
                f"the arm {name} was another model or had other arguments before: give it another "
                "name, or choose another --output."
            )
    if not arms:
        raise ConfigError("name at least one model.")
    every = {**earlier, **arms}
    if base is not None and base not in every:
        raise ConfigError(f"the base {base} is none of the arms {', '.join(every)}.")
    return dict(sorted(every.items(), key=lambda item: item[0] != base))


def templates_of(arms: Iterable[AuditArm], tokenizer: str | None) -> list[PromptTemplate]:
    """Returns the different chat templates that are known.

    Args:
        arms: A model that is served elsewhere is tried now.
        tokenizer: Folder or hub id of the tokenizer whose template stands for these models'.
    """
    named = None
    if tokenizer is not None:
        named = PromptTemplate(load_tokenizer(tokenizer, LoadOptions(device="cpu")))
    found: dict[str, PromptTemplate] = {}
    for arm in arms:
        template = template_of(arm.model, arm.args)
        if template is None:
            arm.load()
            template = named
        if template is not None:
            found.setdefault(template.identity, template)
    return list(found.values())


def embedding_of(arms: Iterable[AuditArm]) -> Callable[[], Tensor] | None:
    """Returns what loads, once, the (V, D) input embedding of the first arm that runs here."""
    arm = next((arm for arm in arms if arm.local_name), None)
    if arm is None:
        return None

    @cache
    def load() -> Tensor:
        options = LocalOptions.of(arm.args)
        model, _ = load_model(str(arm.local_name), options.adapter, options.loading)
        weight: Tensor = model.get_input_embeddings().weight.detach().cpu()
        return weight

    return load
