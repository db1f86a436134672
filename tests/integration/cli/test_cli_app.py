"""`treft` itself: help, version, what `treft sft` does with options, Ctrl-C."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from cli_helpers import WORDS, Command, Refused, user, write_rows
from transformers import AutoTokenizer
from typer.core import TyperGroup

import treft as package
from treft.cli.app import app

COMMANDS = ("demo", "generate", "regions", "sft", "reference", "organism")


def test_help_and_version(treft: Command) -> None:
    for flag in ("-h", "--help"):
        shown = treft(flag).out
        assert all(command in shown for command in COMMANDS)
    assert treft("--version").out == package.__version__ + "\n"
    assert all(command in treft(code=2).out for command in COMMANDS)


@pytest.mark.parametrize("command", [
    ("demo",), ("generate",), ("regions",), ("reference", "record"), ("reference", "inspect"),
    ("organism", "build"), ("organism", "rows"), ("organism", "questions"), ("sft",),
])  # fmt: skip
def test_every_command_explains_itself_and_prints_json(
    treft: Command, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for flag in ("-h", "--help"):
        assert "--json" in treft(*command, flag).out


def test_the_installed_command_starts_without_heavy_imports() -> None:
    """Help and version must not wait for PyTorch."""
    code = (
        "import sys, treft.cli\n"
        "try: treft.cli.main(['--version'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'trl', 'peft') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == [package.__version__, "[]"]


def options(command: Any, name: str = "treft") -> dict[str, set[str]]:
    """Long options by command."""
    if isinstance(command, TyperGroup):
        return {
            full: found
            for sub, below in command.commands.items()
            for full, found in options(below, f"{name} {sub}").items()
        }
    return {name: {o for p in command.params for o in [*p.opts, *p.secondary_opts] if "--" in o}}


def test_docs_have_every_option_and_no_other() -> None:
    text = (Path(__file__).parents[3] / "docs" / "cli.md").read_text(encoding="utf-8")
    _, *parts = re.split(r"^## treft (.+)$", text, flags=re.MULTILINE)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    found = options(typer.main.get_command(app))
    anywhere = {option for own in found.values() for option in own}
    general = {"--help", "--json", "--trust-remote-code", "--overwrite", "--think-block"}
    for command in ("demo", "generate", "reference", "regions", "organism"):
        documented = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+(?![\w-])", sections[command]))
        own = {o for name, has in found.items() if name.split()[1] == command for o in has}
        assert own - documented <= general, command
        assert documented <= anywhere, command


def test_ctrl_c_is_no_traceback(
    folder: Path, treft: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", press)
    told = treft("regions", "--tokenizer", folder / "base", "--prompt", "Hi", code=130)
    assert told == ("", "")


def test_sft_refuses_unknown_options_and_unreadable_yaml(folder: Path, refused: Refused) -> None:
    assert "unknown options: --bogus 3" in refused("sft", "--bogus", 3)
    assert "nothing.yaml" in refused("sft", "--config", folder / "nothing.yaml")
    (folder / "bad.yaml").write_text("a: [")
    assert "bad.yaml" in refused("sft", "--config", folder / "bad.yaml")
    (folder / "list.yaml").write_text("- 1")
    assert "list.yaml" in refused("sft", "--config", folder / "list.yaml")
    (folder / "unknown.yaml").write_text("bogus: 3")
    assert "unknown options: --bogus 3" in refused("sft", "--config", folder / "unknown.yaml")


def test_sft_then_generate_with_the_adapters_own_name(
    folder: Path, treft: Command, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter of a relative base is found again, and not put on another one."""
    monkeypatch.chdir(folder)
    rows = user(*WORDS)
    for row in rows:
        row["messages"].append({"role": "assistant", "content": "It is."})
    result = treft(
        "sft", "--model_name_or_path", "base", "--use_peft", "--train_file",
        write_rows(folder / "train.jsonl", rows), "--max_steps", 1, "--bf16", "false",
        "--report_to", "none", "--save_strategy", "no", "--output_dir", "out", "--json",
    ).json  # fmt: skip
    assert result["command"] == "sft"
    assert result["steps"] == 1
    ask = ("--prompt", WORDS[0], "--max-new-tokens", 4)
    told = treft("generate", "--model", "out", "--patch", "prefix", *ask)
    assert told.out == treft("generate", "--model", "./base", "--adapter", "out", *ask).out
    assert "another base" not in told.err
    line = refused("generate", "--model", "other", "--adapter", "out", *ask)
    assert "was trained on base, not on other" in line
