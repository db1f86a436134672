"""Pairs of models that no attribution can compare are refused by each command that would."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import Command, Refused
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationMixin

ASKED = ("--questions", "organism", "--num", "2", "--max-new-tokens")
COMMANDS: dict[str, tuple[str, ...]] = {
    "perturb": ("attribute", "perturb"),
    "patch": ("attribute", "patch"),
    "signals": ("attribute", "signals"),
    "diagnose": ("diagnose",),
}
BARE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
"""Writes nothing but the user's words."""


@pytest.fixture(autouse=True)
def _no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was asked")

    monkeypatch.setattr(GenerationMixin, "generate", fail)


def of_other_tokens(folder: Path) -> tuple[Any, ...]:
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    tokenizer.add_tokens(["entirely_new"])
    tokenizer.save_pretrained(folder / "other")
    return ("--model", folder / "tuned", "--base", folder / "other")


def of_other_template(folder: Path) -> tuple[Any, ...]:
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    tokenizer.chat_template = "Q: " + str(tokenizer.chat_template)
    tokenizer.save_pretrained(folder / "other")
    return ("--model", folder / "tuned", "--base", folder / "other")


def equal(folder: Path) -> tuple[Any, ...]:
    return ("--model", folder / "tuned", "--base", folder / "tuned")


def untrained(folder: Path) -> tuple[Any, ...]:
    """An adapter that changes nothing: one of its factors is zero."""
    fresh = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), LoraConfig())
    fresh.save_pretrained(folder / "fresh")
    return ("--model", folder / "base", "--adapter", folder / "fresh")


def unquantisable(folder: Path) -> tuple[Any, ...]:
    return ("--model", folder / "base", "--adapter", folder / "adapter", "--quantize", "3bit")


def full(folder: Path) -> tuple[Any, ...]:
    return ("--model", folder / "tuned", "--base", folder / "base")


def without_template_tokens(folder: Path) -> tuple[Any, ...]:
    (folder / "bare.jinja").write_text(BARE)
    return (*full(folder), "--template", folder / "bare.jinja")


CASES = {
    of_other_tokens: ("2", "different tokenizers"),
    of_other_template: ("2", "different chat templates"),
    equal: ("2", "drift 0"),
    untrained: ("2", "drift 0"),
    unquantisable: ("2", "use one of 8bit, 4bit"),
    full: ("9999", "context takes"),
    without_template_tokens: ("2", r"no (prefix|postfix)|share no template tokens"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_cannot_be_compared_is_refused(
    treft: Command, folder: Path, command: str, case: Any
) -> None:
    num_tokens, message = CASES[case]
    output = folder / "out"
    models = case(folder)
    told = treft(*COMMANDS[command], *ASKED, num_tokens, *models, "--output", output, code=2)
    assert re.search(message, told.err.splitlines()[-1])
    assert not output.exists()


def test_a_quantised_full_finetune_has_no_size_and_is_refused_by_signals(
    refused: Refused, folder: Path
) -> None:
    line = refused(*COMMANDS["signals"], *full(folder), "--quantize", "8bit")
    assert "cannot be told from quantised weights" in line
