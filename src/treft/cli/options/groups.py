"""Options that several commands have, defined once."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from annotated_types import Ge

from treft.errors import ConfigError
from treft.files import read_text

Positive = Annotated[int, Ge(1)]
MaybePositive = Annotated[int | None, Ge(1)]
Natural = Annotated[int, Ge(0)]
Temperature = Annotated[float, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class Command:
    """What each command has.

    Attributes:
        json: Print one JSON object on stdout.
    """

    json: bool = False


@dataclass(frozen=True, kw_only=True)
class WritesFile(Command):
    """A command that writes a file.

    Attributes:
        output: JSONL file to write.
        overwrite: Replace --output if it exists.

    Raises:
        ConfigError: the file cannot be written in the end.
    """

    output: Path | None
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Validate before any work."""
        if self.output is not None:
            claim_file(self.output, overwrite=self.overwrite)


@dataclass(frozen=True, kw_only=True)
class Chat:
    """What is asked besides a prompt.

    Attributes:
        system: System message; default: the template's.
        input: JSONL file, one `messages` a row.
        tools: JSON file with a list of tool schemas, for rows without their own.
    """

    system: str | None = None
    input: Path | None = None
    tools: Path | None = None

    def check(self, prompt: str | None) -> None:
        """See that the user's words are in one place.

        Raises:
            ConfigError: they are in none or in two, or a system message goes with a file.
        """
        if (prompt is None) == (self.input is None):
            raise ConfigError("give either --prompt TEXT or --input FILE.jsonl.")
        if self.input is not None and self.system is not None:
            raise ConfigError("--system goes with --prompt; rows of a file bring their own.")


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """How messages become text.

    Attributes:
        template: Chat template to use instead of the tokenizer's.
        template_kwargs: Template variables, such as '{"date_string": "26 Jul 2024"}'.
        think_block: Whether an empty think block belongs to the postfix.

    Raises:
        ConfigError: `template_kwargs` is no JSON object.
    """

    template: Path | None = None
    template_kwargs: str | None = None
    think_block: bool = True

    def __post_init__(self) -> None:
        """Validate before anything is loaded."""
        try:
            found = self.variables
        except json.JSONDecodeError as error:
            raise ConfigError(f"--template-kwargs is malformed JSON ({error.msg}).") from error
        if not isinstance(found, dict):
            raise ConfigError('--template-kwargs is no JSON object; write {"name": value}.')

    @property
    def variables(self) -> dict[str, Any]:
        """The template variables by name."""
        found: dict[str, Any] = json.loads(self.template_kwargs or "{}")
        return found

    @property
    def of_chats(self) -> dict[str, Any]:
        """Keyword arguments of all that renders."""
        return {"template_kwargs": self.variables, "include_think_block": self.think_block}

    def template_text(self) -> str | None:
        """The chat template in the file, if one is named.

        Raises:
            DataError: it cannot be read.
        """
        return None if self.template is None else read_text(self.template)


@dataclass(frozen=True, kw_only=True)
class Answering:
    """How prompts are answered.

    Attributes:
        max_new_tokens: Cap of an answer.
        batch_size: Prompts run together.
        seed: Of all that is drawn at random.
    """

    max_new_tokens: Positive = 64
    batch_size: Positive = 16
    seed: Natural = 0


@dataclass(frozen=True, kw_only=True)
class Limit:
    """How much a command may spend without asking.

    Attributes:
        max_calls: Ask before more answers and calls than this.
        yes: Do not ask.
    """

    max_calls: Natural = 10_000
    yes: Annotated[bool, "--yes", "-y"] = False

    def confirm(self, num_calls: int, kind: str) -> None:
        """Above the limit ask whether to go on, unless `yes` has answered already.

        Args:
            num_calls: calls that are to come, at most.
            kind: what they are, in words, such as `judge calls`.

        Raises:
            ConfigError: above the limit, and nobody is there to answer.
            typer.Abort: the user declines.
        """
        if num_calls <= self.max_calls or self.yes:
            return
        if not sys.stdin.isatty():
            raise ConfigError(
                f"{num_calls:,} {kind} are more than --max-calls {self.max_calls:,}: raise it, or "
                "pass --yes."
            )
        typer.confirm("Go on?", abort=True, err=True)


def split_names(values: tuple[str, ...]) -> tuple[str, ...]:
    """Several names: given one by one, or with commas as `-M patch=` has them; none is twice.

    An empty name stays one, so that a variable of the shell with nothing in it is refused.
    """
    return tuple(dict.fromkeys(name.strip() for value in values for name in value.split(",")))


def claim_file(path: Path, *, overwrite: bool) -> None:
    """Make sure, before any work, that a file can be written in the end.

    Raises:
        ConfigError: it exists and `overwrite` is false, or nothing can be written there.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: name a file as --output.")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists: choose another --output, or pass --overwrite.")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigError(f"{path} cannot be written: {parent} is not a folder that you may write.")
