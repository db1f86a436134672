"""What a user can mend is one line on stderr with exit code 2, before a model answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import Command, Refused, user, write_rows
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel

from treft.cli import main
from treft.errors import ConfigError


@pytest.fixture(autouse=True)
def _no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test fails if a model gets to answer."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was asked")

    monkeypatch.setattr(GenerationMixin, "generate", fail)


@pytest.fixture
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test fails if a model is loaded."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)


BAD_ROWS = {
    "malformed JSON": '{"messages": [\n',
    "no `messages`": '{"text": "Hi"}\n',
    "the conversation is empty": '{"messages": []}\n',
    "roles": '{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}\n',
    "role is 'person'": '{"messages": [{"role": "person", "content": "a"}]}\n',
    "nothing to answer": '{"messages": [{"role": "system", "content": "a"}]}\n',
}


@pytest.mark.usefixtures("_no_model")
@pytest.mark.parametrize("what", BAD_ROWS)
def test_a_bad_row_is_named(folder: Path, refused: Refused, what: str) -> None:
    good = json.dumps(user("Hi")[0]) + "\n"
    (folder / "bad.jsonl").write_text(good + good + BAD_ROWS[what])
    line = refused("generate", "--model", folder / "base", "--input", folder / "bad.jsonl")
    assert f"{folder / 'bad.jsonl'}, row 3" in line
    if what != "roles":
        assert what in line


OPTIONS: list[tuple[str, tuple[object, ...]]] = [
    ("either --prompt TEXT or --input", ()),
    ("either --prompt TEXT or --input", ("--prompt", "Hi", "--input", "rows.jsonl")),
    ("rows of a file bring their own", ("--input", "rows.jsonl", "--system", "Be kind.")),
    ("nothing.jsonl: cannot be read", ("--input", "nothing.jsonl")),
    ("--patch is one of prefix", ("--prompt", "Hi", "--patch", "suffix")),
    ("--patch is one of prefix", ("--prompt", "Hi", "--patch", "")),
    ("--patch is one of prefix", ("--prompt", "Hi", "--patch", "prefix,")),
    ("one of --base and --reference",
     ("--prompt", "Hi", "--patch", "prefix", "--base", "base", "--reference", "x")),
    ("name a --patch", ("--prompt", "Hi", "--base", "base")),
    ("nothing.safetensors cannot be read",
     ("--prompt", "Hi", "--patch", "prefix", "--reference", "nothing.safetensors")),
    ("--num-samples needs a --temperature", ("--prompt", "Hi", "--num-samples", 2)),
    ("--top-p goes with sampling", ("--prompt", "Hi", "--top-p", 0.5)),
    ("--stream prints one answer", ("--prompt", "Hi", "--stream", "--json")),
    ("--stream prints one answer", ("--input", "rows.jsonl", "--stream")),
    ("dtype is 'int8'", ("--prompt", "Hi", "--dtype", "int8")),
    ("device nonsense", ("--prompt", "Hi", "--device", "nonsense")),
    ("malformed JSON", ("--prompt", "Hi", "--template-kwargs", "{")),
    ("no JSON object", ("--prompt", "Hi", "--template-kwargs", "[1]")),
    ("nothing.jinja: cannot be read", ("--prompt", "Hi", "--template", "nothing.jinja")),
    ("rows.jsonl: malformed JSON", ("--prompt", "Hi", "--tools", "rows.jsonl")),
]  # fmt: skip


@pytest.mark.usefixtures("_no_model")
@pytest.mark.parametrize(("what", "options"), OPTIONS)
def test_a_bad_option_is_refused_before_the_model_is_loaded(
    folder: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    options: tuple[object, ...],
) -> None:
    monkeypatch.chdir(folder)
    assert what in refused("generate", "--model", "base", *options)


def test_a_model_that_is_not_there(folder: Path, refused: Refused) -> None:
    ask = ("--prompt", "Hi")
    assert "there is no folder" in refused("generate", "--model", folder / "nowhere", *ask)
    (folder / "empty").mkdir()
    assert "no tokenizer can be loaded from" in refused(
        "generate", "--model", folder / "empty", *ask
    )
    (folder / "base" / "model.safetensors").unlink()
    assert "no model can be loaded from" in refused("generate", "--model", folder / "base", *ask)
    line = refused("generate", "--model", folder / "other", "--adapter", folder / "nowhere", *ask)
    assert "is no adapter" in line


def test_a_tokenizer_without_template(folder: Path, refused: Refused) -> None:
    (folder / "base" / "chat_template.jinja").unlink()
    for command in (("generate", "--model"), ("regions", "--tokenizer")):
        line = refused(*command, folder / "base", "--prompt", "Hi")
        assert "no chat template" in line
        assert "chat_template.jinja" in line
    line = refused("reference", "record", "--model", folder / "base", "--output", folder / "r.st")
    assert "no chat template" in line
    assert not (folder / "r.st").exists()


def test_an_adapter_of_another_base(folder: Path, refused: Refused) -> None:
    other = ("--model", folder / "other", "--adapter", folder / "adapter")
    line = refused("generate", *other, "--prompt", "Hi")
    assert f"was trained on {folder / 'base'}, not on {folder / 'other'}" in line
    assert "--allow-other-base" in line


def test_an_adapter_that_does_not_fit(
    folder: Path, refused: Refused, tiny_model: Callable[..., PreTrainedModel]
) -> None:
    ask = ("--prompt", "Hi", "--allow-other-base", "--adapter", folder / "adapter")
    for change in ({"num_hidden_layers": 1}, {"num_hidden_layers": 3}, {"hidden_size": 64}):
        tiny_model("llama", **change).save_pretrained(folder / "other")
        line = refused("generate", "--model", folder / "other", *ask)
        assert "does not fit on" in line
        assert "another base" in line


def test_an_adapter_whose_base_is_gone(folder: Path, refused: Refused) -> None:
    shutil.rmtree(folder / "base")
    line = refused("generate", "--model", folder / "adapter", "--prompt", "Hi")
    assert "names no base that is there" in line


def test_adapters_on_adapters(folder: Path, refused: Refused) -> None:
    twice = ("--model", folder / "adapter", "--adapter", folder / "adapter")
    assert "is an adapter itself" in refused("generate", *twice, "--prompt", "Hi")


def test_patching_from_nothing(folder: Path, refused: Refused) -> None:
    line = refused("generate", "--model", folder / "base", "--patch", "prefix", "--prompt", "Hi")
    assert "no adapter that could be switched off" in line
    assert "--reference" in line


def test_patching_from_a_model_of_another_shape(
    folder: Path, refused: Refused, tiny_model: Callable[..., PreTrainedModel]
) -> None:
    tiny_model("llama", num_hidden_layers=3).save_pretrained(folder / "other")
    ask = ("--patch", "prefix", "--prompt", "Hi")
    line = refused("generate", "--model", folder / "tuned", "--base", folder / "other", *ask)
    assert "num_layers: 3, not 2" in line


def test_patching_an_adapter_from_another_base(folder: Path, refused: Refused) -> None:
    ask = ("--patch", "prefix", "--prompt", "Hi")
    line = refused("generate", "--model", folder / "adapter", "--base", folder / "other", *ask)
    assert "weights" in line


def test_a_template_that_lacks_the_region(folder: Path, refused: Refused) -> None:
    (folder / "t.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    ask = ("--template", folder / "t.jinja", "--prompt", "Hi")
    line = refused("generate", "--model", folder / "adapter", "--patch", "prefix", *ask)
    assert "no prefix tokens" in line


def test_one_bad_row_is_found_before_the_first_answer(folder: Path, refused: Refused) -> None:
    """The template refuses the last row; no row is answered before."""
    (folder / "t.jinja").write_text(
        "{% for m in messages %}{% if 'bad' in m.content %}{{ raise_exception('No bad words') }}"
        "{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    rows = write_rows(folder / "r.jsonl", user("good", "good", "bad"))
    ask = ("--template", folder / "t.jinja", "--input", rows)
    assert "No bad words" in refused("generate", "--model", folder / "base", *ask)


def test_unknown_commands_and_options(treft: Command) -> None:
    assert "No such command" in treft("nonsense", code=2).err
    assert "No such option" in treft("generate", "--bogus", code=2).err
    assert "Missing option" in treft("generate", code=2).err
    assert "--max-new-tokens" in treft("generate", "--max-new-tokens", 0, code=2).err


def test_debugging_shows_the_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREFT_DEBUG", "1")
    with pytest.raises(ConfigError, match="either --prompt"):
        main(["generate", "--model", str(folder / "base")])
