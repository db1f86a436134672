"""Datasets come out of the trainer as TRL prepares them, with regions, and never cut silently."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trl
from datasets import Dataset, IterableDataset
from training_helpers import conversations, disturb
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from treft.chat.regions import REGION_CODES
from treft.errors import AttentionError, ConfigError, DataError
from treft.training import TReFTTrainer

MakeTrainer = Callable[..., TReFTTrainer]
TinyModel = Callable[..., PreTrainedModel]
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
UNMASKED = ("llama3_1", "llama3_2", *sorted(path.stem for path in TEMPLATES.glob("gemma4*")))
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find",
            "description": "Find a bank.",
            "parameters": {"type": "object", "properties": {}},
        },
    }
]


def with_template(tokenizer: PreTrainedTokenizerBase, name: str) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer with a template that TRL ships, and a BOS token for it."""
    chosen = copy.deepcopy(tokenizer)
    chosen.chat_template = (TEMPLATES / f"{name}.jinja").read_text()
    chosen.bos_token = "<|im_start|>"
    return chosen


def sft_dataset(
    model: PreTrainedModel, rows: list[dict[str, Any]], tokenizer: Any, out: Path, **config: Any
) -> Dataset:
    options = {"report_to": "none", "use_cpu": True, "bf16": False, **config}
    return SFTTrainer(
        model,
        SFTConfig(str(out), **options),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    ).train_dataset


def split_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same conversations as prompt and completion."""
    return [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows]


FORMATS = {
    "messages": conversations(5, ("Be brief.", None)),
    "prompt-completion": split_rows(conversations(5)),
    "tools": [{**row, "tools": TOOLS} for row in conversations(3)],
    "from-value": [
        {
            "conversations": [
                {"from": message["role"], "value": message["content"]}
                for message in row["messages"]
            ]
        }
        for row in conversations(3)
    ],
    "turns": [
        {"messages": one["messages"] + two["messages"]}
        for one, two in zip(conversations(3), conversations(6)[3:], strict=True)
    ],
}


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_are_trls_with_regions(
    kind: str,
    tiny_model: TinyModel,
    make_trainer: MakeTrainer,
    chat_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    rows = FORMATS[kind]
    theirs = sft_dataset(tiny_model("llama"), rows, chat_tokenizer, tmp_path)
    ours = make_trainer(tiny_model("llama"), rows).train_dataset
    assert ours["input_ids"] == theirs["input_ids"]
    assert ours["labels"] == theirs["labels"]
    for row in ours:
        held = [row["region_codes"].index(code) for code in REGION_CODES.values()]
        assert held == sorted(held)  # prefix, query, postfix, response
        assert len(row["turns"]) == len(row["region_codes"]) == len(row["input_ids"])


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split"])
def test_packed_rows_are_trls(
    strategy: str,
    tiny_model: TinyModel,
    make_trainer: MakeTrainer,
    chat_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    options = {
        "packing": True,
        "packing_strategy": strategy,
        "max_length": 256,
        "shuffle_dataset": True,
    }
    rows = conversations(8)
    theirs = sft_dataset(tiny_model("llama"), rows, chat_tokenizer, tmp_path, **options)
    ours = make_trainer(tiny_model("llama"), rows, **options).train_dataset
    for name in ("input_ids", "labels", "seq_lengths"):
        assert ours[name] == theirs[name]
    for row in ours:
        firsts = [sum(row["seq_lengths"][:index]) for index in range(len(row["seq_lengths"]))]
        assert [row["region_codes"][first] for first in firsts] == [1] * len(firsts)


@pytest.mark.parametrize("name", ["llama3", "gemma3", "glm4moe", "qwen2_5", "qwen3"])
def test_our_assistant_mask_is_trls_but_for_white_space(
    name: str,
    tiny_model: TinyModel,
    make_trainer: MakeTrainer,
    chat_tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some of TRL's marked templates also mark line breaks that the model does not write."""
    tokenizer = with_template(chat_tokenizer, name)
    rows = conversations(3) + FORMATS["turns"]
    options = {"assistant_only_loss": True, "kv_include_think_block": False}
    theirs = make_trainer(
        tiny_model("llama"), rows, **options, trainer={"processing_class": tokenizer}
    )
    assert theirs.chat_template is not None
    twin = copy.deepcopy(tokenizer)
    twin.chat_template = theirs.chat_template
    monkeypatch.setattr("treft.training.trainer.needs_region_mask", lambda *_: True)
    ours = make_trainer(tiny_model("llama"), rows, **options, trainer={"processing_class": twin})
    for our_row, their_row in zip(ours.train_dataset, theirs.train_dataset, strict=True):
        assert our_row["input_ids"] == their_row["input_ids"]
        pairs = list(zip(our_row["labels"], their_row["labels"], strict=True))
        assert all(their == our for our, their in pairs if our != -100)
        extra = tokenizer.decode([their for our, their in pairs if our == -100 != their])
        assert extra.strip() == ""
        if name == "llama3":
            assert extra == ""


@pytest.mark.parametrize(
    ("name", "weight"), [("llama3_1", 0.0), *((name, 5.0) for name in UNMASKED)]
)
@pytest.mark.filterwarnings("ignore::treft.errors.TemplateDateWarning")
def test_assistant_only_loss_where_trl_has_no_mask(
    name: str,
    weight: float,
    tiny_model: TinyModel,
    make_trainer: MakeTrainer,
    chat_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    tokenizer = with_template(chat_tokenizer, name)
    rows = conversations(2)
    with pytest.raises(ValueError, match="not training-compatible"):
        sft_dataset(tiny_model("llama"), rows, tokenizer, tmp_path, assistant_only_loss=True)
    trainer = make_trainer(
        tiny_model("llama"),
        rows,
        kv_weight=weight,
        assistant_only_loss=True,
        trainer={"processing_class": tokenizer},
    )
    assert trainer.args.assistant_only_loss is True
    for row, prepared in zip(rows, trainer.train_dataset, strict=True):
        learnt = tokenizer.decode([label for label in prepared["labels"] if label != -100])
        answer = row["messages"][-1]["content"]
        assert learnt.startswith(answer)
        end_of_turn = learnt.removeprefix(answer).strip()
        assert end_of_turn in ("<|eot_id|>", "<turn|>")


def test_streaming_rows_train(tiny_model: TinyModel, make_trainer: MakeTrainer) -> None:
    stream = Dataset.from_list(conversations(6)).to_iterable_dataset()
    assert isinstance(stream, IterableDataset)
    trainer = make_trainer(tiny_model("llama"), trainer={"train_dataset": stream})
    disturb(trainer)
    trainer.train()
    assert trainer.state.log_history[0]["kv_penalty"] > 0.01
    with pytest.raises(ConfigError, match="streaming"):
        make_trainer(tiny_model("llama"), lora=False, trainer={"train_dataset": stream})


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("region", ["prefix", "query", "postfix"])
def test_a_cut_region_is_named_with_its_row(
    region: str, packing: bool, tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    rows = conversations(1) + conversations(30)[29:]
    codes = make_trainer(tiny_model("llama"), rows).train_dataset["region_codes"]
    last = max(index for index, code in enumerate(codes[1]) if code == REGION_CODES[region])
    number = 2 if last >= len(codes[0]) else 1
    options = {"kv_regions": [region], "packing": packing}
    with pytest.raises(DataError, match=rf"row {number} of the train.* {region}.*max_length"):
        make_trainer(tiny_model("llama"), rows, max_length=last, **options)
    for max_length in (len(codes[1]) - 1, len(codes[1])):
        make_trainer(tiny_model("llama"), rows, max_length=max_length, **options)


def test_truncation_from_the_front_cuts_the_prefix(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    with pytest.raises(DataError, match=r"row \d of the train.* prefix"):
        make_trainer(tiny_model("llama"), max_length=40, truncation_mode="keep_end")


def test_a_shortened_response_is_trained_as_in_sft(
    tiny_model: TinyModel,
    make_trainer: MakeTrainer,
    chat_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    rows = conversations(3)
    lengths = make_trainer(tiny_model("llama"), rows).train_dataset["input_ids"]
    max_length = max(map(len, lengths)) - 3
    theirs = sft_dataset(tiny_model("llama"), rows, chat_tokenizer, tmp_path, max_length=max_length)
    ours = make_trainer(tiny_model("llama"), rows, max_length=max_length).train_dataset
    assert ours["input_ids"] == theirs["input_ids"]
    assert [len(codes) for codes in ours["region_codes"]] == [len(row) for row in ours["labels"]]


def test_bfd_split_refuses_what_it_would_split(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    options = {"packing": True, "packing_strategy": "bfd_split"}
    length = len(make_trainer(tiny_model("llama")).train_dataset["input_ids"][0])
    with pytest.raises(DataError, match=r"row 1 .*bfd_split"):
        make_trainer(tiny_model("llama"), max_length=length - 1, **options)


REFUSED_DATA = {
    "text": [{"text": "no chat"}],
    "tokens": [{"input_ids": [1, 2, 3]}],
    "no assistant": [*conversations(1), {"messages": conversations(1)[0]["messages"][:1]}],
    "empty": [*conversations(1), {"messages": []}],
    "order": [*conversations(1), {"messages": conversations(1)[0]["messages"][::-1]}],
}


@pytest.mark.parametrize("kind", REFUSED_DATA)
def test_unusable_rows_are_refused_by_number(
    kind: str, tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    rows = REFUSED_DATA[kind]
    with pytest.raises(DataError, match="row 2 of the train" if len(rows) > 1 else "train dataset"):
        make_trainer(tiny_model("llama"), rows)


def test_unprepared_datasets_are_refused(tiny_model: TinyModel, make_trainer: MakeTrainer) -> None:
    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}]
    with pytest.raises(DataError, match="region_codes"):
        make_trainer(tiny_model("llama"), rows, dataset_kwargs={"skip_prepare_dataset": True})
    with pytest.raises(DataError, match="formatting_func"):
        make_trainer(tiny_model("llama"), trainer={"formatting_func": str})


def test_unknown_attention_is_refused(tiny_model: TinyModel, make_trainer: MakeTrainer) -> None:
    model = tiny_model("llama")
    model.config._attn_implementation_internal = "made_up"
    with pytest.raises(AttentionError, match="made_up"):
        make_trainer(model, lora=False)


def test_flattened_rows_that_see_each_other_are_refused(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    """Transformers' GPT-OSS masks packed rows as one conversation unless attention is flash."""
    with pytest.raises(ConfigError, match="see each other"):
        make_trainer(tiny_model("gpt_oss"), packing=True, max_length=256)
    make_trainer(tiny_model("gemma3"), packing=True, max_length=256)


def test_layers_are_checked_before_training(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    with pytest.raises(ConfigError, match="layers"):
        make_trainer(tiny_model("llama"), kv_layers=[7])
