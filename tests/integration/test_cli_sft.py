"""`treft sft`: flags and YAML, own files, one JSON object, Ctrl-C and resuming."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trl
from training_helpers import conversations
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from treft.cli.sft import main
from treft.errors import ConfigError, DataError
from treft.training import TReFTTrainer

TinyModel = Callable[..., PreTrainedModel]


@pytest.fixture
def folder(tmp_path: Path, tiny_model: TinyModel, chat_tokenizer: PreTrainedTokenizerBase) -> Path:
    """A user's folder: model, rows and a YAML file."""
    tiny_model("llama").save_pretrained(tmp_path / "model")
    chat_tokenizer.save_pretrained(tmp_path / "model")
    lines = [json.dumps(row) for row in conversations(6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "run.yaml").write_text(
        f"model_name_or_path: {tmp_path / 'model'}\nmax_steps: 4\nlogging_steps: 1\n"
        "per_device_train_batch_size: 2\nreport_to: none\nuse_peft: true\n"
        "lora_r: 4\nlora_target_modules: [q_proj, v_proj]\nkv_weight: 3\nlearning_rate: 0.01\n"
        "bf16: false\ndisable_tqdm: true\nsave_strategy: 'no'\n"
    )
    return tmp_path


def run(folder: Path, *more: str) -> None:
    config = str(folder / "run.yaml")
    rows = [] if "--dataset_name" in more else ["--train_file", str(folder / "rows.jsonl")]
    main(["--config", config, "--output_dir", str(folder / "out"), *rows, *more])


def test_json_is_all_of_stdout(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, "--json", "--eval_file", str(folder / "rows.jsonl"), "--kv_weight", "2")
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 4
    assert result["num_rows"] == 6
    assert result["kv_weight"] == 2
    assert result["reference"] == "adapter_off"
    assert result["kv_penalty"] > 0
    assert result["kv_loss"] == pytest.approx(2 * result["kv_penalty"])
    assert result["eval"]["kv_penalty"] > 0
    assert (folder / "out" / "adapter_model.safetensors").is_file()


def test_dataset_name_may_be_a_file_and_weight_zero_plain_sft(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(folder, "--dataset_name", str(folder / "rows.jsonl"), "--kv_weight", "0")
    out = capsys.readouterr().out
    assert "train_loss" in out
    assert "reference  None" in out


def test_nothing_is_overwritten_unasked(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "precious.txt").write_text("kept")
    with pytest.raises(ConfigError, match="overwrite_output_dir"):
        run(folder)
    assert [path.name for path in (folder / "out").iterdir()] == ["precious.txt"]
    run(folder, "--overwrite_output_dir", "--max_steps", "1")
    assert (folder / "out" / "precious.txt").read_text() == "kept"
    assert (folder / "out" / "adapter_model.safetensors").is_file()


class PressCtrlC(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("weight", ["3", "auto"])
def test_ctrl_c_leaves_a_run_that_resumes_to_the_same_end(
    weight: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(folder, "--json", "--kv_weight", weight)
    whole = json.loads(capsys.readouterr().out)
    handler = signal.getsignal(signal.SIGINT)
    initialise = TReFTTrainer.__init__

    def with_ctrl_c(self: TReFTTrainer, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        self.add_callback(PressCtrlC())

    second = ("--output_dir", str(folder / "second"), "--json", "--kv_weight", weight)
    with monkeypatch.context() as patch:
        patch.setattr(TReFTTrainer, "__init__", with_ctrl_c)
        with pytest.raises(SystemExit) as stopped:
            run(folder, *second)
    assert stopped.value.code == 130
    told = capsys.readouterr()
    assert "--resume_from_checkpoint true" in told.err
    assert told.out == ""
    assert signal.getsignal(signal.SIGINT) is handler
    assert (folder / "second" / "checkpoint-2").is_dir()

    run(folder, *second, "--resume_from_checkpoint", "true")
    resumed = json.loads(capsys.readouterr().out)
    assert resumed["steps"] == whole["steps"]
    assert resumed["kv_weight"] == whole["kv_weight"]
    assert (resumed["kv_weight"] == 3) == (weight == "3")
    for name in ("sft_loss", "kv_penalty"):
        assert resumed[name] == pytest.approx(whole[name], rel=1e-5)


def test_an_adapters_folder_is_trained_further(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(folder, "--max_steps", "2")
    more = ("--model_name_or_path", str(folder / "out"), "--output_dir", str(folder / "more"))
    with pytest.raises(ConfigError, match="use_peft"):
        run(folder, *more)
    capsys.readouterr()
    run(folder, *more, "--use_peft", "false", "--json")
    assert json.loads(capsys.readouterr().out)["reference"] == "kept_adapter"
    assert (folder / "more" / "adapter_model.safetensors").is_file()


def test_bad_requests_are_refused_before_the_model_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("went on")

    monkeypatch.setattr("treft.cli.sft.TReFTTrainer", fail)
    with pytest.raises(ConfigError, match="2 were given"):
        run(folder, "--train_file", str(folder / "rows.jsonl"), "--dataset_name", "x/y")
    with pytest.raises(ConfigError, match="no checkpoint"):
        run(folder, "--resume_from_checkpoint", "true")
    with pytest.raises(ConfigError, match=r"trainer_state\.json"):
        run(folder, "--resume_from_checkpoint", str(folder / "model"))
    with pytest.raises(ConfigError, match="kv_weight"):
        run(folder, "--kv_weight", "-1")
    rows = (folder / "rows.jsonl").read_text()
    (folder / "rows.jsonl").write_text(rows + '{"messages": [\n')
    with pytest.raises(DataError, match=r"rows\.jsonl.*7"):
        run(folder)
    assert not (folder / "out").exists()


def test_a_model_that_is_nowhere(folder: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        run(folder, "--model_name_or_path", str(folder / "nowhere"))


def test_rows_keep_their_own_tool_schemas(folder: Path) -> None:
    """A table with one schema for all rows would add `null` for other rows' keys."""
    rows = []
    for number, row in enumerate(conversations(2)):
        call = {"type": "function", "function": {"name": "find", "arguments": {f"key{number}": 1}}}
        question, answer = row["messages"]
        calling = {"role": "assistant", "content": "", "tool_calls": [call]}
        result = {"role": "tool", "content": "found"}
        tools = [{"type": "function", "function": {"name": f"f{number}", f"only{number}": "x"}}]
        rows.append({"messages": [question, calling, result, answer], "tools": tools})
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    template = Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja"
    seen: list[Any] = []

    class Look(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.extend(kwargs["train_dataloader"].dataset["input_ids"])

    with pytest.MonkeyPatch.context() as patch:
        add = TReFTTrainer.add_callback
        patch.setattr(TReFTTrainer, "add_callback", lambda self, _: add(self, Look()))
        run(folder, "--max_steps", "1", "--chat_template_path", str(template))
    texts = [AutoTokenizer.from_pretrained(folder / "model").decode(ids) for ids in seen[:2]]
    assert "key0" in texts[0]
    assert "only1" in texts[1]
    assert not any("null" in text or "None" in text for text in texts)
