"""A package that an extra brings and nobody installed: one line that names both."""

from __future__ import annotations

import sys

import pytest

from treft.cli import main
from treft.errors import ConfigError, needs_extra


def test_the_message_names_package_and_extra() -> None:
    with (
        pytest.raises(ConfigError) as refused,
        needs_extra("data", "reading it needs"),
    ):
        import no_such_package  # noqa: F401
    assert str(refused.value) == (
        "reading it needs more packages (no_such_package is missing): pip install 'treft[data]'"
    )


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), needs_extra("data", "reading it needs"):
        raise KeyError("other")


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (["attribute", "patch", "--model", "m", "--output", "o"], "attribution needs"),
        (["attribute", "perturb", "--model", "m", "--output", "o"], "attribution needs"),
        (["attribute", "signals", "--model", "m"], "attribution needs"),
        (["diagnose", "--model", "m", "--output", "o"], "attribution needs"),
        (["audit", "--model", "m", "--output", "o"], "audits need"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else value,
)
def test_commands_say_it(
    command: list[str],
    what: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai", None)  # as if it was not installed
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert f"error: {what} more packages (inspect_ai is missing)" in told.err
    assert "pip install 'treft[eval]'" in told.err
