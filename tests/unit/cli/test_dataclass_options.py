"""A dataclass becomes a command: names, types, defaults and help of its options."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
import typer.main
from annotated_types import Ge

from treft.cli.app import app
from treft.cli.commands import COMMANDS
from treft.cli.dataclass_options import command_function


@dataclass(frozen=True, kw_only=True)
class Group:
    """A group.

    Attributes:
        size: How large,
            told on two lines.
        quick: Make haste.
    """

    size: Annotated[int, Ge(1)] = 3
    quick: bool = False


@dataclass(frozen=True, kw_only=True)
class Base:
    """What others have, too.

    Attributes:
        last: Comes last.
    """

    last: bool = True


@dataclass(frozen=True, kw_only=True)
class Made(Base):
    """Make something.

    It is made
    of files.

    Attributes:
        files: What it is made of.
        name: What it is called.
        others: Further names.
        agreed: Do not ask.
    """

    files: Annotated[tuple[Path, ...], "FILES"]
    name: str
    others: tuple[str, ...] = ()
    agreed: Annotated[bool, "--agreed", "-a"] = False
    group: Group = field(default_factory=lambda: Group(size=7))


def parameters(command: Any) -> dict[str, Any]:
    return {parameter.name: parameter for parameter in command.params}


@pytest.fixture
def seen() -> list[Made]:
    return []


@pytest.fixture
def command(seen: list[Made]) -> Any:
    made = typer.Typer(add_completion=False)
    made.command()(command_function(Made, seen.append))
    return typer.main.get_command(made)


def run(command: Any, *argv: str) -> None:
    command(args=list(argv), standalone_mode=False)


def test_nothing_given_is_the_defaults_of_this_command(command: Any, seen: list[Made]) -> None:
    run(command, "x", "y", "--name", "n")
    assert seen == [Made(files=(Path("x"), Path("y")), name="n", group=Group(size=7))]


def test_what_is_given_goes_into_its_group(command: Any, seen: list[Made]) -> None:
    run(
        command,
        *["x", "--name", "n", "--others", "a", "--others", "b", "-a", "--quick", "--no-last"],
    )
    assert seen[0].others == ("a", "b")
    assert seen[0].group == Group(size=7, quick=True)
    assert (seen[0].agreed, seen[0].last) == (True, False)


@pytest.mark.parametrize("argv", ["--name n", "x", "x --name n --size 0", "x --name n --no-quick"])
def test_what_does_not_fit_is_refused(command: Any, seen: list[Made], argv: str) -> None:
    with pytest.raises(typer.TyperException):
        run(command, *argv.split())
    assert not seen


def test_docstrings_are_the_help(command: Any) -> None:
    found = parameters(command)
    assert command.help == "Make something.\n\nIt is made of files."
    assert list(found)[-1] == "last"
    assert found["size"].help == "How large, told on two lines."
    assert found["size"].rich_help_panel == "Group"
    assert found["last"].help == "Comes last."


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_every_command_has_help(name: str) -> None:
    found = typer.main.get_command(app)
    for part in name.split():
        found = found.commands[part]  # type: ignore[attr-defined]
    assert found.help
    assert all(parameter.help for parameter in found.params)  # type: ignore[attr-defined]
