"""Options of a command from a dataclass: Typer gets a function whose parameters are its fields.

A field's name, type and default are the option's; its line in the docstring's `Attributes` is the
help. A field that is a dataclass itself brings a group of options, which is a panel of the help
page, and its default says which defaults those options have in this command. In `Annotated` stand
what a type cannot say: spellings (one without dashes makes a positional argument) and `Ge`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer
from annotated_types import Ge

from treft.docstrings import class_words, field_words

Options = TypeVar("Options")
REQUIRED = inspect.Parameter.empty


def command_function(options: type[Options], run: Callable[[Options], None]) -> Callable[..., None]:
    """A function as Typer reads it: a parameter for each option, help in its docstring.

    Args:
        options: a dataclass.
        run: what is called with it.
    """

    def call(**values: Any) -> None:
        run(_instance(options, values))

    found = [option.parameter() for option in _options(options)]
    told = re.split(r"\n+(?:Attributes|Raises):\n", class_words(options))[0]
    call.__doc__ = re.sub(r"(?<!\n)\n(?!\n)", " ", told)  # lines break where the terminal ends
    vars(call)["__signature__"] = inspect.Signature(found)
    call.__annotations__ = {}
    return call


@dataclass(frozen=True)
class _Option:
    """A field on its way to Typer.

    Attributes:
        name: The field's name.
        kind: Its type, without what `Annotated` adds.
        told: What `Annotated` adds.
        default: Its default, or `REQUIRED`.
        words: Its line of the docstring.
        panel: Title on the help page, or None for the first panel.
    """

    name: str
    kind: Any
    told: tuple[Any, ...]
    default: Any
    words: str
    panel: str | None

    def parameter(self) -> inspect.Parameter:
        """The parameter of a function that Typer makes the same option of."""
        spellings = [each for each in self.told if isinstance(each, str)]
        least = next((each.ge for each in self.told if isinstance(each, Ge)), None)
        shown: dict[str, Any] = {"help": self.words, "min": least, "rich_help_panel": self.panel}
        if self.kind is bool and self.default is False and not spellings:
            spellings = [f"--{self.name.replace('_', '-')}"]  # without its --no-
        is_positional = bool(spellings) and not spellings[0].startswith("-")
        info = typer.Argument(**shown) if is_positional else typer.Option(*spellings, **shown)
        kind, default = self.kind, self.default
        if _is_tuple(kind):
            kind = list[get_args(kind)[0]]  # type: ignore[misc]  # known only when it runs
            kind, default = (kind, default) if default is REQUIRED else (kind | None, None)
        return inspect.Parameter(
            self.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[kind, info],
        )


def _options(kind: type, default: Any = REQUIRED, panel: str | None = None) -> Iterator[_Option]:
    """Yields all options of a dataclass, those of groups in the group's place.

    Args:
        kind: the dataclass.
        default: an instance, whose values are the defaults; else the class's own.
        panel: title on the help page.
    """
    words = field_words(kind)
    for field, hint in _fields(kind):
        bare, *told = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        value = _default(field) if default is REQUIRED else getattr(default, field.name)
        if is_dataclass(bare):
            title = field.name.replace("_", " ").capitalize()
            yield from _options(bare, value, title)  # type: ignore[arg-type]  # is a class
        else:
            yield _Option(field.name, bare, tuple(told), value, words[field.name], panel)


def _instance(kind: type[Options], values: Mapping[str, Any]) -> Options:
    """The dataclass with what was given."""
    given: dict[str, Any] = {}
    for field, hint in _fields(kind):
        bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if is_dataclass(bare):
            given[field.name] = _instance(bare, values)  # type: ignore[arg-type]  # is a class
        else:
            value = values[field.name]
            given[field.name] = tuple(value or ()) if _is_tuple(bare) else value
    return kind(**given)


def _fields(kind: type) -> list[tuple[Field[Any], Any]]:
    """Fields with their types, those of base classes last."""
    hints = get_type_hints(kind, include_extras=True)
    by_name = {field.name: field for field in fields(kind)}
    names = (name for each in kind.__mro__ for name in vars(each).get("__annotations__", ()))
    return [(by_name[name], hints[name]) for name in dict.fromkeys(names) if name in by_name]


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return REQUIRED if field.default is MISSING else field.default


def _is_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple
