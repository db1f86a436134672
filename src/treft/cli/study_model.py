"""Options of `treft study` that name a real model, and what they come to."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from treft.cli.output import confirm_calls
from treft.errors import ConfigError

if TYPE_CHECKING:
    from treft.steps.step import PlannedStep
    from treft.study.model_setup import ModelSetup


PANEL = "On a real model instead of the organism"

Model = Annotated[str | None, typer.Option(help="Folder or hub id.", rich_help_panel=PANEL)]
TrainFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--train-file",
        help="DOMAIN=FILE, JSONL rows of `messages` to train on; repeatable. The first is the "
        "domain of studies that do not name one. facts=FILE has questions and short answers.",
        rich_help_panel=PANEL,
    ),
]
RetainFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--retain-file",
        help="DOMAIN=FILE, careful rows of another domain, of the trained one, or of none "
        "(general=FILE); repeatable.",
        rich_help_panel=PANEL,
    ),
]
Judge = Annotated[
    str | None,
    typer.Option(
        help="Inspect model name of the judge; behaviours are seen without.",
        rich_help_panel=PANEL,
    ),
]
Questions = Annotated[
    str | None,
    typer.Option(help="General questions: a shipped set or a JSONL file.", rich_help_panel=PANEL),
]
Strengths = Annotated[
    list[str] | None,
    typer.Option(
        "--strength",
        help="METHOD=NUMBER where the organism's is not right; repeatable.",
        rich_help_panel=PANEL,
    ),
]
MaxCalls = Annotated[
    int, typer.Option(help="Ask before more judge calls than this.", min=0, rich_help_panel=PANEL)
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.", rich_help_panel=PANEL)]


class ModelOptions(NamedTuple):
    """What was given of the options above."""

    model: str | None
    train_files: list[str] | None
    retain_files: list[str] | None
    judge: str | None
    questions: str | None
    strengths: list[str] | None = None

    def setup(self) -> ModelSetup | None:
        """The model with its files; None where none is named.

        Raises:
            ConfigError: an option is malformed, belongs to a model and there is none, or names
                what is not there.
        """
        from treft.study.model_setup import ModelSetup

        if self.model is None:
            if any(self[1:]):
                raise ConfigError("training files, judge and questions go with --model: name one.")
            return None
        named = {"questions": self.questions} if self.questions else {}
        return ModelSetup(
            self.model,
            self.judge or "",
            _files("--train-file", self.train_files or []),
            _files("--retain-file", self.retain_files or []),
            strengths=_numbers(self.strengths or []),
            **named,
        )


def confirm_judging(steps: Iterable[PlannedStep], max_calls: int, *, yes: bool) -> None:
    """Say how often judges will be asked, and above a limit ask whether to go on.

    Raises:
        ConfigError: above the limit, and nobody is there to answer.
    """
    from treft.study.model_scores import Paid

    configs = (planned.step.config for planned in steps)
    paid = (config for config in configs if isinstance(config, Paid))
    num_calls = sum(config.num_calls for config in paid)
    if num_calls:
        typer.echo(f"at most {num_calls:,} judge calls; none is paid twice", err=True)
    confirm_calls(num_calls, "judge calls", max_calls, yes=yes)


def _files(option: str, given: list[str]) -> dict[str, Path]:
    return {name: Path(path) for name, path in _pairs(option, given, "DOMAIN=FILE").items()}


def _numbers(given: list[str]) -> dict[str, float]:
    found = {}
    for name, value in _pairs("--strength", given, "METHOD=NUMBER").items():
        try:
            found[name] = float(value)
        except ValueError:
            raise ConfigError(f"--strength {name}={value}: {value} is no number.") from None
    return found


def _pairs(option: str, given: list[str], form: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        name, _, value = text.partition("=")
        if not name or not value:
            raise ConfigError(f"{option} {text}: write {form}.")
        if name in found:
            raise ConfigError(f"{option} names {name} twice.")
        found[name] = value
    return found
