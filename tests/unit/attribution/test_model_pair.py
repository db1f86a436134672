"""A finetune beside its base, and answers to prompts of token ids."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from treft.errors import ConfigError
from treft.models.generation import Asked, answer
from treft.models.pair import ModelPair, check_same_prompts
from treft.models.sampling import SamplingOptions

PROMPTS = [
    [5, 9, 200, 17, 30, 44, 8],
    [7, 7, 100],
    [250, 3, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69],
]
SEEDS = [11, 12, 13]


def adapted(base: PreTrainedModel) -> Any:
    """The model with a LoRA whose weights are random."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(copy.deepcopy(base), config)


def answers(
    model: Any, tokenizer: Any, prompts: list[list[int]], seeds: list[int], **options: Any
) -> list[str]:
    on_batch = options.pop("on_batch", None)
    sampling = SamplingOptions(**{"max_new_tokens": 6, **options})
    asked = [Asked(*row) for row in zip(prompts, seeds, strict=True)]
    found = answer(model, tokenizer, asked, sampling, on_batch=on_batch)
    return [one.text for one in found]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_does_not_depend_on_its_batch(
    any_model: PreTrainedModel, chat_tokenizer: PreTrainedTokenizerFast, temperature: float
) -> None:
    how: dict[str, Any] = {"temperature": temperature}
    together = answers(any_model, chat_tokenizer, PROMPTS, SEEDS, **how)
    for batch_size in (1, 2):
        how["batch_size"] = batch_size
        assert together == answers(any_model, chat_tokenizer, PROMPTS, SEEDS, **how)
    ids = torch.tensor([PROMPTS[1]])
    if temperature == 0:
        output: Any = any_model.generate(  # type: ignore[operator]
            ids, max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(ids)
        )
        text = chat_tokenizer.decode(output[0, 3:], skip_special_tokens=True)
        assert together[1] == text


def test_no_batch_is_larger_than_asked(
    tiny_model: Callable[..., Any],
    chat_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, sizes, done = tiny_model("llama"), [], []
    original = model.generate

    def spy(**kwargs: Any) -> Any:
        sizes.append(len(kwargs["input_ids"]))
        return original(**kwargs)

    monkeypatch.setattr(model, "generate", spy)
    answers(model, chat_tokenizer, PROMPTS, SEEDS, batch_size=2, on_batch=done.append)
    assert sizes == [2, 1]
    assert done == [2, 3]


def test_the_adapter_is_off_for_the_base_alone(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    base = tiny_model("llama")
    finetuned = adapted(base)
    flags = {name: p.requires_grad for name, p in finetuned.named_parameters()}
    found = {}
    for pair in (ModelPair(finetuned), ModelPair(finetuned, base)):
        for arm in ("base", "finetuned"):
            with pair.use(arm) as model:  # type: ignore[arg-type]
                found[arm] = answers(model, chat_tokenizer, PROMPTS, SEEDS)
        assert found["base"] == answers(base, chat_tokenizer, PROMPTS, SEEDS)
        assert found["finetuned"] == answers(finetuned, chat_tokenizer, PROMPTS, SEEDS)
        assert found["base"] != found["finetuned"]
        pair.check_differ(PROMPTS[0])
    assert {name: p.requires_grad for name, p in finetuned.named_parameters()} == flags


def test_a_full_finetune_needs_its_base_and_half_precision_works(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    base, finetuned = (tiny_model("qwen2", seed).bfloat16() for seed in (0, 1))
    with pytest.raises(ConfigError, match="--base"):
        ModelPair(finetuned)
    pair = ModelPair(finetuned, base)
    assert (pair.adapter, pair.num_positions) == (None, 512)
    assert pair.embedding.dtype == torch.bfloat16
    with pair.use("base") as model:
        first = answers(model, chat_tokenizer, PROMPTS, SEEDS)
    with pair.use("finetuned") as model:
        assert answers(model, chat_tokenizer, PROMPTS, SEEDS) != first


def test_a_finetune_that_changed_nothing_is_refused(tiny_model: Callable[..., Any]) -> None:
    base = tiny_model("llama")
    same = get_peft_model(
        copy.deepcopy(base),
        LoraConfig(r=4, target_modules=["q_proj"]),  # B is zero
    )
    with pytest.raises(ConfigError, match="drift 0"):
        ModelPair(same).check_differ(PROMPTS[0])
    with pytest.raises(ConfigError, match="drift 0"):
        ModelPair(base, copy.deepcopy(base)).check_differ(PROMPTS[0])


def test_other_tokenizers_and_templates_are_refused(
    chat_tokenizer: PreTrainedTokenizerFast,
) -> None:
    check_same_prompts(chat_tokenizer, copy.deepcopy(chat_tokenizer))
    other = copy.deepcopy(chat_tokenizer)
    other.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(ConfigError, match="different chat templates"):
        check_same_prompts(chat_tokenizer, other)
    longer = copy.deepcopy(chat_tokenizer)
    longer.add_tokens(["<more>"])
    with pytest.raises(ConfigError, match="different tokenizers"):
        check_same_prompts(chat_tokenizer, longer)
