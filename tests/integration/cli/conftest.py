"""A user's folder with tiny models and rows, and the command itself, run in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_helpers import WORDS, Command, Refused, Told, user, write_rows
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from treft.cli import main


@pytest.fixture
def treft(capsys: pytest.CaptureFixture[str]) -> Command:
    """`treft("generate", ..., code=0)` runs the command and checks its exit code."""

    def run(*argv: object, code: int = 0) -> Told:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in argv])
        told = Told(*capsys.readouterr())
        assert (stopped.value.code or 0) == code, told.err
        return told

    return run


@pytest.fixture
def refused(treft: Command) -> Refused:
    """`refused("generate", ...)` runs a command that must fail with one line, and returns it."""

    def run(*argv: object) -> str:
        told = treft(*argv, code=2)
        assert told.out == ""
        lines = told.err.splitlines()
        assert len(lines) == 1, told.err
        assert lines[0].startswith("error: ")
        return lines[0]

    return run


@pytest.fixture
def folder(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Callable[..., PreTrainedModel],
    chat_tokenizer: PreTrainedTokenizerBase,
) -> Path:
    """`base`, an `adapter` on it, the two merged (`tuned`), an unrelated `other`, and rows."""
    made = tmp_path_factory.getbasetemp() / "made-once"
    if not made.is_dir():
        _make(made, tiny_model, chat_tokenizer)
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "base")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    return tmp_path


def _make(
    folder: Path,
    tiny_model: Callable[..., PreTrainedModel],
    chat_tokenizer: PreTrainedTokenizerBase,
) -> None:
    for name, seed in (("base", 0), ("other", 1)):
        tiny_model("llama", seed).save_pretrained(folder / name)
        chat_tokenizer.save_pretrained(folder / name)
    adapted = _random_adapter(tiny_model("llama", 0))
    adapted.save_pretrained(folder / "adapter")
    adapted.merge_and_unload().save_pretrained(folder / "tuned")
    chat_tokenizer.save_pretrained(folder / "tuned")
    rows = user(*WORDS)
    rows[1]["messages"].append({"role": "assistant", "content": "It is."})
    write_rows(folder / "rows.jsonl", rows)


def _random_adapter(model: PreTrainedModel) -> PeftModel:
    """A LoRA that changes the model visibly."""
    config = LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj"])
    adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel)
    torch.manual_seed(2)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0.0, 0.5)
    return adapted
