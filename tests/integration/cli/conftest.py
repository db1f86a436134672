"""A user's folder with tiny models and rows, and the command itself, run in this process."""

from __future__ import annotations

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
    tiny_model: Callable[..., PreTrainedModel],
    chat_tokenizer: PreTrainedTokenizerBase,
) -> Path:
    """`base`, an `adapter` on it, the two merged (`tuned`), an unrelated `other`, and rows."""
    for name, seed in (("base", 0), ("other", 1)):
        tiny_model("llama", seed).save_pretrained(tmp_path / name)
        chat_tokenizer.save_pretrained(tmp_path / name)
    adapted = random_adapter(tiny_model("llama", 0), tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "tuned")
    chat_tokenizer.save_pretrained(tmp_path / "tuned")
    rows = user(*WORDS)
    rows[1]["messages"].append({"role": "assistant", "content": "It is."})
    write_rows(tmp_path / "rows.jsonl", rows)
    return tmp_path


def random_adapter(model: PreTrainedModel, base: Path) -> PeftModel:
    """A LoRA that changes the model visibly, and says that it belongs to `base`."""
    config = LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj"])
    adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    torch.manual_seed(2)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0.0, 0.5)
    return adapted
