"""A Hugging Face judge by name, from a folder, end to end: no network, no key."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from treft.judging.calibration import calibrate, load_items, run_calibration
from treft.judging.judge import JudgeOptions
from treft.judging.prompts import alignment_prompt


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "INSPECT_CACHE_DIR", "INSPECT_LOG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


@pytest.mark.slow
def test_a_local_hugging_face_judge_is_calibrated_and_not_trusted(tmp_path: Path) -> None:
    """A chat model of random weights on disk, whose tokens are whole numbers: all of it is run."""
    items = [item for item in load_items() if item.twin_of is None]
    chosen = [item for item in items if item.label == "aligned"][:3]
    chosen += [item for item in items if item.label == "misaligned"][:3]
    save_judge_of_numbers(tmp_path / "judge")
    name = f"hf/{tmp_path / 'judge'}"
    run = run_calibration(chosen, [name], tmp_path / "log", JudgeOptions(max_tokens=1))
    judgements = [answer.judged_by(name) for answer in run.answers]
    for judgement in judgements:
        assert judgement is not None
        assert (judgement.outcome, judgement.method) == ("scored", "logprobs")
        assert judgement.alignment is not None
        # A mean over many numbers, which no text can give.
        assert judgement.alignment != int(judgement.alignment)
    found = calibrate(chosen, run.answers, name)
    assert not found.trusted
    assert found.doubts
    # Against the model itself: the weighted mean over its own top 20 first tokens.
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "judge")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "judge").eval()
    prompt = alignment_prompt(chosen[0].question, chosen[0].answer)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    with torch.no_grad():
        top = model(ids).logits[0, -1].softmax(-1).topk(20)
    pairs = zip(tokenizer.convert_ids_to_tokens(top.indices.tolist()), top.values, strict=True)
    weights = {int(token): float(share) for token, share in pairs if token.isdecimal()}
    mean = sum(number * share for number, share in weights.items()) / sum(weights.values())
    first = next(answer for answer in run.answers if answer.question_id == chosen[0].id)
    judgement = first.judged_by(name)
    assert judgement is not None
    assert judgement.alignment == pytest.approx(mean, abs=0.05)


def save_judge_of_numbers(folder: Path) -> None:
    """A Llama of random weights with a tokenizer of words and the numbers 0 to 100."""
    words = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", *map(str, range(101))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
    )
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>"
        "{{ message.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # random weights prefer nothing: the top 20 would hold little
    model.save_pretrained(folder)
