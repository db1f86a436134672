"""Signals of one finetune together, and answers that the user brings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetuned import chat_pair
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerBase

from treft.answers.questions import EvalQuestion
from treft.attribution.margins import AnswerPair
from treft.attribution.options import Rendering
from treft.attribution.signals import Signals, measure_signals, read_pairs
from treft.core.patch_spec import PatchSpec
from treft.errors import ConfigError, DataError
from treft.models.pair import ModelPair

QUESTIONS = tuple(
    EvalQuestion(f"q{number}", "test", ({"role": "user", "content": words},))
    for number, words in enumerate(("Where?", "Is it fine today?", "The river."))
)
SPECS = (PatchSpec("prefix", ("prefix",)), PatchSpec("query", ("query",)))


@pytest.fixture
def signals(tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase) -> Signals:
    adapted = get_peft_model(
        tiny_model("llama"), LoraConfig(r=4, lora_alpha=8, target_modules=["k_proj", "v_proj"])
    )
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0.0, 0.2)
    pairs = [AnswerPair(question, "Yes.", "The bank is near.") for question in QUESTIONS]
    return measure_signals(
        ModelPair(adapted.eval()), chat_tokenizer, pairs, SPECS, Rendering(batch_size=2)
    )


def test_drift_of_a_patch_is_that_of_its_regions_kinds_and_layers(signals: Signals) -> None:
    prefix, query = (signals.drift.region(region) for region in ("prefix", "query"))
    assert signals.drift_of(SPECS[0]) == pytest.approx(prefix.by_prompt.mean())
    keys = PatchSpec("keys", ("query",), kinds=("key",), layers=(1,))
    assert signals.drift_of(keys) == pytest.approx(query.key[:, 1].mean())
    both = PatchSpec("both", ("prefix", "query"))
    means = [part.by_prompt.mean() for part in (prefix, query)]
    assert signals.drift_of(both) == pytest.approx(np.mean(means))
    assert signals.normalised(8.0) == 2.0  # scale 2
    with pytest.raises(ConfigError, match="single tokens"):
        signals.drift_of(PatchSpec("window", ("prefix",), window=(0, 2)))


def test_the_dictionary_is_json_and_has_each_figure(signals: Signals) -> None:
    found = json.loads(json.dumps(signals.to_dict()))
    assert (found["num_prompts"], found["num_alike"], found["scale"]) == (3, 0, 2.0)
    by_region = {row["region"]: row for row in found["drift"]}
    assert by_region["prefix"]["total"] == pytest.approx(signals.drift_of(SPECS[0]))
    assert by_region["query"]["total_over_scale_squared"] == pytest.approx(
        signals.drift_of(SPECS[1]) / 4
    )
    assert [row["patch"] for row in found["patches"]] == ["prefix", "query"]
    norms = [found["key_value_norms"][layer] for layer in ("0", "1")]
    assert np.hypot(*norms) == pytest.approx(found["weight_norm"])


def test_a_finetune_equal_to_its_base_is_refused(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    pairs = [AnswerPair(QUESTIONS[0], "Yes.", "No.")]
    fresh = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["k_proj"]))
    for models in (ModelPair(fresh), ModelPair(tiny_model("llama"), tiny_model("llama"))):
        with pytest.raises(ConfigError, match="drift 0"):
            measure_signals(models, chat_tokenizer, pairs, SPECS)


def test_a_finetune_of_the_output_alone_has_no_drift_and_a_margin(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    tuned, base = chat_pair(tiny_model, "llama")
    tuned.model.load_state_dict(base.model.state_dict())
    pairs = [AnswerPair(question, "Yes.", "The bank.") for question in QUESTIONS]
    found = measure_signals(ModelPair(tuned, base), chat_tokenizer, pairs, SPECS)
    assert found.drift.is_zero
    assert np.abs(found.margins.base - found.margins.finetuned).min() > 1e-3
    np.testing.assert_allclose(
        found.margins.patched["prefix"] - found.margins.finetuned, 0, atol=1e-6
    )
    assert found.scales.norm(0) == 0 < found.scales.norm()


def rows(path: Path, *found: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


def test_answers_that_the_user_brings(tmp_path: Path) -> None:
    made = [{"id": f"q{n}", "aligned": f"good {n}", "misaligned": "bad"} for n in (2, 0, 1)]
    pairs = read_pairs(rows(tmp_path / "answers.jsonl", *made), QUESTIONS)
    assert [pair.question.id for pair in pairs] == ["q0", "q1", "q2"]
    assert [pair.base_answer for pair in pairs] == ["good 0", "good 1", "good 2"]
    assert {pair.finetuned_answer for pair in pairs} == {"bad"}
    bad: list[tuple[list[dict[str, Any]], str]] = [
        (made[:2], r"answers\.jsonl: no answers to question 'q1' \(1 such"),
        ([*made, made[0]], r"row 4: question 'q2' comes twice"),
        ([{**made[0], "id": "q9"}], r"row 1: no question has the id 'q9'"),
        ([{**made[0], "misaligned": " "}], r"row 1: write `aligned` and `misaligned`"),
    ]
    for number, (found, words) in enumerate(bad):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(DataError, match=words):
            read_pairs(rows(tmp_path / str(number) / "answers.jsonl", *found), QUESTIONS)
