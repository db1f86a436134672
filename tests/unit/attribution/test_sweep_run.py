"""Answers of a sweep, against those of `generate`; files, resumption, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuned import ARCHITECTURES, adapted, add_noise, chat_pair
from transformers import PreTrainedTokenizerBase

from treft.answers.questions import EvalQuestion
from treft.attribution import sweep_run
from treft.attribution.sweep import SweepOptions, layer_name
from treft.attribution.sweep_plan import SweepPlan, SweepRequest, answers_path
from treft.attribution.sweep_run import Sweep, run_sweep
from treft.errors import ConfigError, DataError, TemplateError
from treft.judging.oracle import organism_questions
from treft.models.pair import ModelPair
from treft.models.repair import generate, patch
from treft.models.residual import stream_bank
from treft.models.sampling import SamplingOptions

EVERY: Any = ("regions", "kinds", "windows", "layers", "curve")
QUESTIONS = organism_questions("general", split="validation", num=3).questions


def request(**changed: Any) -> SweepRequest:
    options = {"options": SweepOptions(), "max_new_tokens": 4, **changed}
    return SweepRequest(**{"sampling": SamplingOptions(temperature=0), **options})


def planned(
    pair: ModelPair, tokenizer: PreTrainedTokenizerBase, asked: SweepRequest | None = None
) -> SweepPlan:
    return SweepPlan.of(asked or request(), QUESTIONS, tokenizer, pair)


def texts(sweep: Sweep) -> dict[str, list[str]]:
    return {name: [one.answer for one in found] for name, found in sweep.scored.items()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_answers_are_those_of_generate(
    tiny_model: Callable[..., Any],
    chat_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    name: str,
) -> None:
    tuned, base = chat_pair(tiny_model, name)
    pair = ModelPair(tuned, base)
    plan = planned(pair, chat_tokenizer, request(options=SweepOptions(("regions", "curve"))))
    found = texts(run_sweep(plan, pair, tmp_path, batch_size=2))
    chats = [question.messages for question in QUESTIONS]
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 4}
    assert found["base"] == generate(base, chat_tokenizer, chats, **options)
    assert found["finetuned"] == generate(tuned, chat_tokenizer, chats, **options)
    for region in ("prefix", "query", "postfix"):
        repaired = patch(tuned, chat_tokenizer, [region], reference=base)  # type: ignore[list-item]
        assert found[region] == repaired.generate(chats, **options)
    for layer in range(tuned.config.num_hidden_layers):
        repaired = patch(tuned, chat_tokenizer, reference=stream_bank(tuned, layer, base))
        assert found[layer_name(layer)] == repaired.generate(chats, **options)
    assert found[layer_name(layer)] == found["finetuned"]
    regions = ("prefix", "query", "postfix")
    assert any(found[region] != found["finetuned"] for region in regions)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_adapter_is_the_pair_of_it_and_its_base_in_bfloat16(
    tiny_model: Callable[..., Any],
    chat_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    name: str,
) -> None:
    base, twin = tiny_model(name).bfloat16(), tiny_model(name).bfloat16()
    tuned = adapted(twin)
    sampling = SamplingOptions(temperature=1.0)
    options = request(
        options=SweepOptions(EVERY, ("prefix",), window_width=64),
        num_samples=2,
        sampling=sampling,
    )
    found = []
    for number, pair in enumerate((ModelPair(tuned), ModelPair(tuned, base))):
        plan = planned(pair, chat_tokenizer, options)
        found.append(texts(run_sweep(plan, pair, tmp_path / str(number), batch_size=4)))
    assert found[0] == found[1]
    assert found[0]["base"] != found[0]["finetuned"]


def test_the_base_is_recorded_once_for_all_patches(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    tuned, base = chat_pair(tiny_model, "llama")
    pair = ModelPair(tuned, base)
    forwards: list[int] = []
    base.register_forward_hook(lambda *_: forwards.append(1))
    counts = []
    for groups in (("regions",), ("regions", "kinds", "windows", "layers")):
        plan = planned(
            pair,
            chat_tokenizer,
            request(options=SweepOptions(groups, ("prefix", "query"), window_width=64)),
        )  # type: ignore[arg-type]
        forwards.clear()
        run_sweep(plan, pair, tmp_path / str(len(groups)), batch_size=2)
        counts.append((len(plan.cells), len(forwards)))
    assert counts[0][0] < counts[1][0]
    assert counts[0][1] == counts[1][1]


def test_a_sweep_goes_on_where_it_stopped(
    tiny_model: Callable[..., Any],
    chat_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tuned, base = chat_pair(tiny_model, "llama")
    pair = ModelPair(tuned, base)
    plan = planned(pair, chat_tokenizer)
    whole = plan.cost(tmp_path, ["oracle"])
    assert whole.num_answers == (2 + len(plan.cells)) * 3
    assert whole.num_new_tokens == whole.num_answers * 4
    assert whole.num_judge_calls == 0
    assert plan.cost(tmp_path, ["openai/x"]).num_judge_calls == 2 * whole.num_answers
    first = run_sweep(plan, pair, tmp_path)
    answered: list[int] = []
    original = sweep_run.answer_tokens

    def spy(model: Any, tokenizer: Any, prompts: Any, *args: Any, **options: Any) -> Any:
        answered.append(len(prompts))
        return original(model, tokenizer, prompts, *args, **options)

    monkeypatch.setattr(sweep_run, "answer_tokens", spy)
    assert run_sweep(plan, pair, tmp_path) == first
    assert answered == []
    assert plan.cost(tmp_path, []).total == 0
    answers_path(tmp_path, "prefix").unlink()
    assert plan.unanswered(tmp_path) == ["prefix"]
    assert run_sweep(plan, pair, tmp_path) == first
    assert answered == [3]
    more = planned(pair, chat_tokenizer, request(options=SweepOptions(("regions", "kinds"))))
    run_sweep(more, pair, tmp_path)
    assert answered == [3, *[3] * 6]


def test_files_that_do_not_fit_are_refused(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    tuned, base = chat_pair(tiny_model, "llama")
    pair = ModelPair(tuned, base)
    plan = planned(pair, chat_tokenizer)
    run_sweep(plan, pair, tmp_path)
    with pytest.raises(ConfigError, match="begun with other seed"):
        run_sweep(planned(pair, chat_tokenizer, request(seed=1)), pair, tmp_path)
    path = answers_path(tmp_path, "query")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["seed"] += 1
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=r"query.jsonl: does not answer this sweep"):
        run_sweep(plan, pair, tmp_path)
    (tmp_path / "plan.json").write_text("[")
    with pytest.raises(ConfigError, match="is no plan of a sweep"):
        run_sweep(plan, pair, tmp_path)
    (tmp_path / "plan.json").unlink()
    with pytest.raises(ConfigError, match="holds something else"):
        run_sweep(plan, pair, tmp_path)


def test_a_finetune_that_is_its_base_is_said_to_be(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    pair = ModelPair(tiny_model("llama"), tiny_model("llama"))
    with pytest.raises(ConfigError, match="drift 0"):
        run_sweep(planned(pair, chat_tokenizer), pair, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_patched_is_refused_before_any_forward(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    tuned, base = chat_pair(tiny_model, "llama")
    pair = ModelPair(tuned, base)
    tuned.register_forward_hook(lambda *_: pytest.fail("a forward ran"))
    with pytest.raises(DataError, match=r"may have 500, but the model's context takes 512"):
        planned(pair, chat_tokenizer, request(max_new_tokens=500))
    with pytest.raises(ConfigError, match=r"band of 3 layers .* 0 to 1"):
        planned(pair, chat_tokenizer, request(options=SweepOptions(("layers",), band_width=3)))
    with pytest.raises(ConfigError, match="greedy answers"):
        request(num_samples=2)
    with pytest.raises(ConfigError, match="scope is"):
        request(scope="all")
    with pytest.raises(DataError, match="no question"):
        SweepPlan.of(request(), [], chat_tokenizer, pair)
    bare: Any = type(chat_tokenizer)(tokenizer_object=chat_tokenizer.backend_tokenizer)
    bare.chat_template = "{% for m in messages %}{{ m['content'] + '|' }}{% endfor %}"
    question = EvalQuestion("q1", "test", ({"role": "user", "content": "Where?"},))
    with pytest.raises(TemplateError, match="question 'q1': this conversation has no prefix"):
        SweepPlan.of(request(), [question], bare, pair)
    with pytest.raises(ConfigError, match="no adapter"):
        ModelPair(tuned)


def test_a_patch_from_the_base_undoes_a_finetune_of_the_prefix_alone(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """The finetune changes embeddings of tokens that stand in the prefix and nowhere else."""
    tuned, base = (tiny_model("llama").double() for _ in range(2))
    plan = planned(ModelPair(tuned, base), chat_tokenizer)
    others = {
        token
        for chat in plan.chats
        for region in ("query", "postfix")
        for token in (chat.input_ids[place] for place in chat.positions(region))  # type: ignore[arg-type]
    }
    chat = plan.chats[0]
    own = {chat.input_ids[place] for place in chat.positions("prefix")} - others
    assert own
    embedding = tuned.get_input_embeddings()
    before = embedding.weight.detach().clone()
    add_noise(embedding, 3.0)
    kept = [token for token in range(len(before)) if token not in own]
    with torch.no_grad():
        embedding.weight[kept] = before[kept]
    pair = ModelPair(tuned, base)
    found = texts(run_sweep(plan, pair, tmp_path))
    assert found["prefix"] == found["base"] != found["finetuned"]
    assert found["postfix"] != found["base"]
