"""Attribution studies on a real model: a tiny random one, against transformers and by hand."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_judges
import pytest
import torch
from fake_judges import output_of
from inspect_ai.log import read_eval_log
from inspect_ai.model import ModelOutput
from model_study_helpers import done, judge, made, read, setup, told, value_of
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from treft.answers.logs import find_logs
from treft.errors import ConfigError, DataError
from treft.steps.step import Plan
from treft.steps.store import Store
from treft.study.model_rows import curve_layers, num_prefix_tokens
from treft.study.plans import drift_steps, perturb_steps
from treft.study.protocol import Method, NotPossibleError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("model_files")]
LABEL = "tiny-llama/seed-0"


def lines(plan: Plan, store: Store, step: str, file: str) -> list[dict[str, Any]]:
    text = (store.path(plan[step].address) / file).read_text()
    return [json.loads(line) for line in text.splitlines()]


def prompts_by_hand() -> dict[str, list[int]]:
    """Token ids of the two questions, by id."""
    tokenizer = AutoTokenizer.from_pretrained("tiny-llama")
    asked = [json.loads(line) for line in Path("asked.jsonl").read_text().splitlines()]
    rendered = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["question"]}], add_generation_prompt=True
        )["input_ids"]
        for row in asked
    ]
    return {row["question"]: ids for row, ids in zip(asked, rendered, strict=True)}


def test_drift_is_the_mean_of_squared_relative_deviations_and_needs_no_judge() -> None:
    model = replace(setup(), judge="")
    plan, store = done(drift_steps(told(model, learning_rate=0.1), {"sft": Method()}))
    row = read(plan, store, f"drift/{LABEL}/sft", "row.json")
    folder = store.path(plan[f"finetune/{LABEL}/sft"].address)
    base = AutoModelForCausalLM.from_pretrained("tiny-llama")
    tuned: Any = PeftModel.from_pretrained(base, str(folder / "adapter"))
    tokenizer = AutoTokenizer.from_pretrained("tiny-llama")
    found: dict[str, list[float]] = defaultdict(list)
    for ids in prompts_by_hand().values():
        tokens = torch.tensor([ids])
        with torch.no_grad():
            after = tuned(tokens, use_cache=True).past_key_values.layers
            with tuned.disable_adapter():
                before = tuned(tokens, use_cache=True).past_key_values.layers
        text = tokenizer.decode(ids)
        num_prefix = len(tokenizer(text[: text.index("user\n") + 5]).input_ids)
        parts = []
        for index, (new, old) in enumerate(zip(after, before, strict=True)):
            for kind in ("keys", "values"):
                a, b = (getattr(layer, kind)[0, :, :num_prefix].double() for layer in (new, old))
                moved = (a - b).square().sum((0, 2)) / b.square().sum((0, 2))  # (T,)
                found[f"prefix_{kind[:-1]}_{index}"].append(float(moved.mean()))
                parts.append(float(moved.mean()))
        found["prefix"].append(sum(parts) / len(after))
    for name, values in found.items():
        assert row[name] == pytest.approx(sum(values) / len(values), rel=1e-3)
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    assert row["prefix"] > 1e-4
    assert (row["method"], row["organism"], row["num_general"]) == ("sft", "tiny-llama", 2)


def test_perturbed_prompts_are_answered_by_finetune_and_base_and_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def all_scored(prompt: str, asked: int) -> ModelOutput:
        if "into other words" in prompt:
            return judge(prompt, asked)
        return output_of(str(value_of(fake_judges.judged_answer(prompt))))

    monkeypatch.setitem(fake_judges.RULES, "all", all_scored)
    rows: Any = {"unperturbed": "nothing", "prefix": "prefix", "rephrase": "rephrase"}
    config = told(replace(setup(), judge="fakejudge/all"), learning_rate=0.1)
    plan, store = done(perturb_steps(config, rows))
    by_hand = prompts_by_hand()
    own = lines(plan, store, "prompts/tiny-llama/unperturbed", "prompts.jsonl")
    assert len(own) == 20
    assert {tuple(row["token_ids"]) for row in own} == {tuple(one) for one in by_hand.values()}
    plain = {row["question_id"]: row["token_ids"] for row in own}
    num_prefix = num_prefix_tokens(config, setup())
    changed = lines(plan, store, "prompts/tiny-llama/prefix", "prompts.jsonl")
    for row in changed:
        before = plain[row["question_id"]]
        moved = [n for n, (a, b) in enumerate(zip(before, row["token_ids"], strict=True)) if a != b]
        assert 0 < len(moved) <= 10
        assert max(moved) < num_prefix
    said = lines(plan, store, "prompts/tiny-llama/rephrase", "prompts.jsonl")
    tokenizer = AutoTokenizer.from_pretrained("tiny-llama")
    assert {tokenizer.decode(row["token_ids"]).count("fine") for row in said} == {1}
    for label, method in ((f"{LABEL}/sft", "prefix"), ("tiny-llama/base", "base_prefix")):
        answers = lines(plan, store, f"answer/{label}/prefix", "answers.jsonl")
        scores: dict[str, list[int]] = defaultdict(list)
        for version, answer in zip(changed, answers, strict=True):
            scores[version["question_id"]].append(value_of(answer["answer"]))
        row = read(plan, store, f"score/{label}/prefix", "row.json")
        every = [value for found in scores.values() for value in found]
        assert row["method"] == method
        assert row["best"] == pytest.approx(sum(map(max, scores.values())) / 2)
        assert row["avg"] == pytest.approx(sum(every) / len(every))
        assert row["incoherent"] == 100 * sum(value <= 50 for value in every) / len(every)
        assert (row["num_general"], row["num_trials"], row["missing"]) == (2, 10, 0)
    first, second = (
        lines(plan, store, f"answer/{label}/unperturbed", "answers.jsonl")
        for label in (f"{LABEL}/sft", "tiny-llama/base")
    )
    assert first != second


def test_a_judge_that_scores_nothing_is_named_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(fake_judges.RULES, "mute", lambda prompt, asked: output_of("no idea"))
    config = told(replace(setup(), judge="fakejudge/mute"))
    with pytest.raises(AssertionError, match="scored none of 20 general answers: "):
        done(perturb_steps(config, {"unperturbed": "nothing"}))


def test_a_prompt_without_room_for_its_answer_is_refused() -> None:
    with pytest.raises(AssertionError, match="context takes 512"):
        done(perturb_steps(told(max_new_tokens=500), {"unperturbed": "nothing"}))


def test_what_cannot_be_asked_is_refused_before_anything_runs() -> None:
    with pytest.raises(NotPossibleError, match="judge"):
        perturb_steps(told(replace(setup(), judge="")), {"unperturbed": "nothing"})
    Path("one.jsonl").write_text('{"question": "Where?"}\n')
    with pytest.raises(ConfigError, match="at least two questions"):
        perturb_steps(told(replace(setup(), questions="one.jsonl")), {"unperturbed": "nothing"})
    with pytest.raises(ConfigError, match=r"num_curve_layers: .* than or equal to 2, not 1"):
        curve_layers(told(num_curve_layers=1), setup())
    Path("asked.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"asked\.jsonl"):
        drift_steps(told(), {"sft": Method()})


def test_parts_of_a_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values together, and all windows, are the whole; the last layer's stream nothing."""
    config = told()
    num = num_prefix_tokens(config, setup())
    [whole] = {len(ids) - len(ids[num:]) for ids in prompts_by_hand().values()}
    assert whole == num > 4
    assert curve_layers(config, setup()) == [0, 1]
    prefix = Method(patch=("prefix",), scopes=("general",))
    methods = {
        "plain": Method(scopes=("general",)),
        "whole": prefix,
        "window": replace(prefix, window=(0, num)),
        "half": replace(prefix, window=(0, num // 2)),
        "keys": replace(prefix, kinds=("key",)),
        "values": replace(prefix, kinds=("value",)),
        "first": replace(prefix, stream_layer=0),
        "last": replace(prefix, stream_layer=1),
        "full": replace(prefix, stream_layer=0, is_full=True),
        "full_plain": Method(is_full=True, scopes=("general",)),
    }
    plan, store = made(methods, learning_rate=0.3, max_new_tokens=12, temperature=0.7)
    said = {name: answers(plan, store, name) for name in methods}
    assert said["window"] == said["whole"]
    assert said["last"] == said["plain"]
    for name in ("whole", "half", "keys", "values", "first"):
        assert said[name] != said["plain"], name
    assert said["keys"] != said["whole"] != said["values"]
    assert said["full"] != said["full_plain"]


def answers(plan: Plan, store: Store, method: str) -> list[str]:
    folder = store.path(plan[f"answer/{LABEL}/{method}/general"].address)
    [path] = find_logs([folder / "logs"])
    samples = read_eval_log(str(path)).samples or []
    return [one.output.completion for one in sorted(samples, key=lambda s: (str(s.id), s.epoch))]
