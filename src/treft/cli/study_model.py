"""What the options of `treft study` that name a real model come to."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from treft.cli.options.groups import Limit
from treft.cli.options.studies import RealModel
from treft.errors import ConfigError
from treft.steps.step import Step
from treft.study.model_setup import ModelSetup


def model_setup(options: RealModel) -> ModelSetup | None:
    """Returns the model with its files; None where none is named.

    Raises:
        ConfigError: an option is malformed, or names what is not there.
    """
    if options.model is None:
        return None
    named = {"questions": options.questions} if options.questions else {}
    return ModelSetup(
        options.model,
        options.judge or "",
        _files("--train-file", options.train_file),
        _files("--retain-file", options.retain_file),
        strengths=_numbers(options.strength),
        **named,
    )


def confirm_judging(steps: Iterable[Step[Any]], limit: Limit) -> None:
    """Say how often judges will be asked, and above a limit ask whether to go on.

    Raises:
        ConfigError: above the limit, and nobody is there to answer.
    """
    num_calls = sum(step.resources.num_calls for step in steps)
    if num_calls:
        print(f"at most {num_calls:,} judge calls; none is paid twice", file=sys.stderr)
    limit.confirm(num_calls, "judge calls")


def _files(option: str, given: Iterable[str]) -> dict[str, Path]:
    return {name: Path(path) for name, path in _pairs(option, given, "DOMAIN=FILE").items()}


def _numbers(given: Iterable[str]) -> dict[str, float]:
    found = {}
    for name, value in _pairs("--strength", given, "METHOD=NUMBER").items():
        try:
            found[name] = float(value)
        except ValueError:
            raise ConfigError(f"--strength {name}={value}: {value} is no number.") from None
    return found


def _pairs(option: str, given: Iterable[str], form: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        name, _, value = text.partition("=")
        if not name or not value:
            raise ConfigError(f"{option} {text}: write {form}.")
        if name in found:
            raise ConfigError(f"{option} names {name} twice.")
        found[name] = value
    return found
