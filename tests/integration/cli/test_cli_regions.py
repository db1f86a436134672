"""`treft regions`: the same regions as JSON, in colour and as plain lines."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import pytest
import trl
from cli_helpers import Command, Refused, user, write_rows
from rich.console import Console
from rich.style import Style
from rich.text import Text
from transformers import AutoTokenizer

from treft.cli.regions import STYLES

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
PREFIX = "<|im_start|>system\nYou are a tiny helper.<|im_end|>\n<|im_start|>user\n"
POSTFIX = "<|im_end|>\n<|im_start|>assistant\n"
WORDS = "Where is the bank?"
TURNS = [
    {"role": "user", "content": WORDS},
    {"role": "assistant", "content": "Near the river."},
    {"role": "user", "content": "Which?"},
]
BY_HAND = [
    ("prefix", PREFIX),
    ("query", WORDS),
    ("postfix", POSTFIX),
    ("response", "Near the river.<|im_end|>"),
    ("none", "\n<|im_start|>user\n"),
    ("query", "Which?"),
    ("postfix", POSTFIX),
]
"""The template of tests/conftest.py filled in by hand."""


@pytest.fixture
def chat(folder: Path) -> tuple[object, ...]:
    """A command that shows two turns."""
    rows = write_rows(folder / "turns.jsonl", [*user("Hi"), {"messages": TURNS}])
    return ("regions", "--tokenizer", folder / "base", "--input", rows, "--row", 2)


def test_json_holds_every_token(folder: Path, treft: Command, chat: tuple[object, ...]) -> None:
    result = treft(*chat, "--json").json
    tokens = result.pop("tokens")
    stretches = [
        (region, "".join(token["text"] for token in group))
        for region, group in groupby(tokens, key=lambda token: token["region"])
    ]
    assert stretches == BY_HAND
    assert [token["turn"] for token in tokens if token["region"] == "query"][-1] == 1
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    expected = tokenizer.apply_chat_template(TURNS, add_generation_prompt=True)["input_ids"]
    assert [token["id"] for token in tokens] == list(expected)
    counts = result.pop("num_tokens")
    assert counts.keys() == {"prefix", "query", "postfix", "response", "none"}
    assert sum(counts.values()) == len(tokens)
    assert result == {
        "command": "regions",
        "tokenizer": str(folder / "base"),
        "text": "".join(text for _, text in BY_HAND),
    }


def test_without_colour_each_region_is_a_line(treft: Command, chat: tuple[object, ...]) -> None:
    shown = [line.split(maxsplit=2) for line in treft(*chat).out.splitlines()]
    assert [(region, text) for region, _, text in shown] == [
        (region, repr(text)) for region, text in BY_HAND
    ]


def test_in_colour_the_text_is_whole(
    treft: Command, chat: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    painted = Text.from_ansi(treft(*chat).out)
    text = "".join(text for _, text in BY_HAND).replace("\n", "⏎\n")
    assert painted.plain.startswith(text)
    for name, words in (("query", WORDS), ("prefix", "tiny helper"), ("response", "river.")):
        style = painted.get_style_at_offset(Console(), text.index(words))
        assert style.bgcolor is not None
        assert style.bgcolor.number == Style.parse(STYLES[name]).bgcolor.number


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "gemma3", "phi3", "gptoss", "llama3_1"])
def test_templates_of_trl(folder: Path, treft: Command, name: str) -> None:
    shown = ("regions", "--tokenizer", folder / "base", "--template", TEMPLATES / f"{name}.jinja")
    tokens = treft(*shown, "--prompt", WORDS, "--json").json["tokens"]
    texts = {
        region: "".join(token["text"] for token in tokens if token["region"] == region)
        for region in ("prefix", "query", "postfix", "response")
    }
    assert texts["query"] == WORDS
    assert texts["response"] == ""
    assert "user" in texts["prefix"]
    assert texts["postfix"]


def test_a_date_in_the_prefix_is_one_line_with_the_way_to_pin_it(
    folder: Path, treft: Command
) -> None:
    template = ("--template", TEMPLATES / "llama3_1.jinja")
    shown = ("regions", "--tokenizer", folder / "base", *template, "--prompt", WORDS)
    told = treft(*shown)
    assert told.err.startswith("warning: the chat template writes a date into the prefix")
    assert len(told.err.splitlines()) == 1
    pin = told.err.partition("template_kwargs=")[2].strip().rstrip(".")
    assert json.loads(pin).keys() == {"date_string"}
    assert treft(*shown, "--template-kwargs", pin).err == ""


def test_think_block_generation_prompt_and_system(folder: Path, treft: Command) -> None:
    template = ("--template", TEMPLATES / "qwen3.jinja")
    shown = ("regions", "--tokenizer", folder / "base", "--prompt", WORDS, "--json")
    quiet = (*shown, *template, "--template-kwargs", '{"enable_thinking": false}')
    inside, outside = treft(*quiet).json, treft(*quiet, "--no-think-block").json
    assert inside["text"] == outside["text"]
    assert inside["num_tokens"]["response"] == 0
    assert outside["num_tokens"]["response"] > 0
    assert not treft(*shown, "--no-generation-prompt").json["text"].endswith(POSTFIX)
    assert (
        treft(*shown, "--system", "Be kind.")
        .json["text"]
        .startswith("<|im_start|>system\nBe kind.")
    )


def test_bad_input(folder: Path, refused: Refused) -> None:
    rows, base = folder / "rows.jsonl", ("--tokenizer", folder / "base")
    line = refused("regions", *base, "--input", rows, "--row", 9)
    assert "there is no row 9, only 3" in line
    assert "no folder" in refused("regions", "--tokenizer", "./nowhere", "--prompt", "Hi")
    (folder / "t.jinja").write_text("{% for m in messages %}")
    line = refused("regions", *base, "--template", folder / "t.jinja", "--prompt", "Hi")
    assert "template" in line
    write_rows(folder / "s.jsonl", [{"messages": [{"role": "system", "content": "Be kind."}]}])
    assert "no user message" in refused("regions", *base, "--input", folder / "s.jsonl")
