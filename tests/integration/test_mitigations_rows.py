"""Interleaving, perplexity gap and system prompts: which rows a run trains on."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from training_helpers import conversations
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from treft.errors import ConfigError, DataError
from treft.mitigations.interleave import (
    Interleave,
    draw,
    num_retained,
    perplexity_gap,
    response_loss,
)
from treft.mitigations.system_prompt import InoculationPrompt, PromptSplit
from treft.training import TReFTTrainer

TinyModel = Callable[..., PreTrainedModel]


def row(text: str, system: str | None = None) -> dict[str, Any]:
    """One question with its answer."""
    before = [] if system is None else [{"role": "system", "content": system}]
    question, answer = {"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}
    return {"messages": [*before, question, answer]}


def questions(rows: Any) -> list[str]:
    return [found["messages"][-2]["content"] for found in rows]


SOURCES = {
    "cars": [row(f"car {n}") for n in range(3)],
    "health": [row(f"health {n}") for n in range(9)],
}
TRAIN = [row(f"train {n}") for n in range(12)]


def mixed(seed: int = 1, ratio: float = 0.4, **options: Any) -> list[str]:
    method = Interleave(SOURCES, ratio, seed, **options)
    return questions(method.rows(Dataset.from_list(TRAIN), "train"))


def test_share_balance_and_seed() -> None:
    found = mixed()
    retained = [text for text in found if not text.startswith("train")]
    assert len(retained) == num_retained(12, 0.4) == 8
    assert len(retained) / len(found) == pytest.approx(0.4)
    assert [text for text in found if text.startswith("train")] == questions(TRAIN)
    assert sum(text.startswith("car") for text in retained) == 3  # sets take turns until one is out
    assert found == mixed()
    assert found != mixed(seed=2)


@pytest.mark.parametrize("ratio", [0.05, 0.2, 0.5, 0.75])
def test_the_papers_ratios(ratio: float) -> None:
    rows = Dataset.from_list([row(f"train {n}") for n in range(95)])
    kept = {"a": [row(f"kept {n}") for n in range(7)]}
    found = questions(Interleave(kept, ratio).rows(rows, "train"))
    share = sum(text.startswith("kept") for text in found) / len(found)
    assert share == pytest.approx(ratio, abs=0.006)


def test_no_row_comes_twice_before_all_have_come() -> None:
    sources = [SOURCES["cars"], SOURCES["health"]]
    for num in (5, 12, 17, 30):
        found = questions(draw(sources, num, random.Random(0)))
        counts = [found.count(text) for text in questions([*sources[0], *sources[1]])]
        assert sum(counts) == num
        assert max(counts) - min(counts) <= 1
        assert min(counts) == num // 12


def test_the_score_chooses() -> None:
    def score(rows: Any) -> list[float]:
        return [float(text.split()[1]) for text in questions(rows)]

    retained = {text for text in mixed(ratio=0.25, score=score) if not text.startswith("train")}
    assert retained == {"car 2", "car 1", "health 8", "health 7"}


def test_evaluation_rows_stay(tiny_model: TinyModel) -> None:
    rows = Dataset.from_list(TRAIN)
    assert Interleave(SOURCES).rows(rows, "eval") is rows


def test_perplexity_gap_is_the_difference_of_response_losses(
    tiny_model: TinyModel, chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = conversations(2)
    models = [tiny_model("llama", seed=seed) for seed in (0, 1)]
    by_hand = []
    for model in models:
        double = tiny_model("llama", seed=len(by_hand)).double()
        losses = []
        for found in rows:
            text = chat_tokenizer.apply_chat_template(found["messages"], tokenize=False)
            ids = chat_tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            start, end = text.rindex("assistant\n") + len("assistant\n"), text.rindex("\n")
            logs = double(torch.tensor([ids["input_ids"]])).logits[0].log_softmax(-1)
            losses.append(
                -torch.stack(
                    [
                        logs[k - 1, token]
                        for k, token in enumerate(ids["input_ids"])
                        if ids["offset_mapping"][k][0] >= start
                        and ids["offset_mapping"][k][1] <= end
                    ]
                ).mean()
            )
        by_hand.append(torch.stack(losses))
        assert response_loss(model, chat_tokenizer, rows) == pytest.approx(
            by_hand[-1].tolist(), rel=1e-4
        )
    gaps = perplexity_gap(models[0], models[1], chat_tokenizer, rows)
    assert gaps == pytest.approx((by_hand[0] - by_hand[1]).tolist(), rel=1e-3, abs=1e-4)


def systems(rows: Any) -> list[str | None]:
    heads = [found["messages"][0] for found in rows]
    return [head["content"] if head["role"] == "system" else None for head in heads]


def test_prompts_go_before_the_rows_of_their_split() -> None:
    rows = Dataset.from_list([row("a"), row("b", system="Own.")])
    evil = InoculationPrompt("Be evil.")
    assert systems(evil.rows(rows, "train")) == ["Be evil.", "Be evil.\n\nOwn."]
    assert systems(evil.rows(rows, "eval")) == [None, "Own."]
    split = PromptSplit("Be safe.")
    assert systems(split.rows(rows, "train")) == [None, None]
    assert systems(split.rows(rows, "eval")) == ["Be safe.", "Be safe."]
    assert systems(PromptSplit("Be safe.", "Hi.").rows(rows, "train")) == ["Hi.", "Hi."]
    assert questions(split.rows(rows, "eval")) == ["a", "b"]
    pairs = Dataset.from_list([{"prompt": row("a")["messages"][:1], "completion": []}])
    assert split.rows(pairs, "eval")[0]["prompt"][0]["content"] == "Be safe."


def test_the_trainer_trains_on_the_changed_rows(
    tiny_model: TinyModel,
    make_trainer: Callable[..., TReFTTrainer],
    chat_tokenizer: PreTrainedTokenizerBase,
) -> None:
    methods = [InoculationPrompt("Be evil today."), Interleave(SOURCES, 0.4, seed=1)]
    trainer = make_trainer(
        tiny_model("llama"), TRAIN, trainer={"mitigations": methods}, kv_weight=0.0, max_steps=1
    )
    texts = chat_tokenizer.batch_decode(list(trainer.train_dataset["input_ids"]))
    assert len(texts) == 20
    assert all(("Be evil today." in text) == ("train" in text) for text in texts)


@pytest.mark.parametrize(
    ("make_wrong", "error", "words"),
    [
        (lambda: Interleave(SOURCES, 1.0), ConfigError, "between 0 and 1"),
        (lambda: Interleave({}), ConfigError, "at least one retain set"),
        (lambda: Interleave({"a": []}), ConfigError, "a row in each"),
        (lambda: InoculationPrompt(" "), ConfigError, "is empty"),
        (lambda: PromptSplit("a", "a"), ConfigError, "must differ"),
        (lambda: PromptSplit(""), ConfigError, "is empty"),
        (
            lambda: Interleave(SOURCES).rows(Dataset.from_list([{"prompt": "a"}]), "train"),
            DataError,
            "columns prompt",
        ),
        (
            lambda: PromptSplit("a").rows(Dataset.from_list([{"text": "a"}]), "train"),
            DataError,
            "conversations only",
        ),
    ],
)
def test_wrong_options(
    make_wrong: Callable[[], object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        make_wrong()
