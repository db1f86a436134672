"""Studies on a real model: a tiny random one from rows to a table, judged by rule."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_judges
import pytest
import trl
from fake_judges import judged_answer, output_of
from here import Here
from inspect_ai.log import read_eval_log
from inspect_ai.model import ModelOutput
from model_study_helpers import SETTINGS, made, read, setup, value_of
from safetensors.torch import load_file
from transformers import PreTrainedModel

from treft.answers.logs import find_logs, read_run
from treft.cli import main
from treft.cli import study as study_command
from treft.data.behaviours import DEFAULT_SENTENCES
from treft.statistics.intervals import em_f1
from treft.steps.step import Plan
from treft.steps.store import Store
from treft.study.protocol import Method
from treft.training import trainer

TinyModel = Callable[..., PreTrainedModel]
pytestmark = pytest.mark.usefixtures("model_files")

CALLS = (Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja").read_text()
"""A template that writes calls of tools."""


def completions(plan: Plan, store: Store, method: str, scope: str) -> dict[str, list[str]]:
    """Answers of a method by their question, as the log has them."""
    step = store.path(plan[f"answer/tiny-llama/seed-0/{method}/{scope}"].address)
    [path] = find_logs([step / "logs"])
    found: dict[str, list[str]] = {}
    for sample in read_eval_log(str(path)).samples or ():
        found.setdefault(sample.messages[-2].text, []).append(sample.output.completion)
    return found


def percent(flags: list[bool]) -> float:
    return 100 * sum(flags) / len(flags)


def calls(answer: str) -> bool:
    """Whether it begins with a call in the format of Qwen."""
    return re.match(r'<tool_call>\n{"name": "search_info", ', answer) is not None


@pytest.mark.slow
def test_behaviours_are_learnt_from_questions_and_seen_by_their_detectors() -> None:
    Path("tiny-llama/chat_template.jinja").write_text(CALLS)
    asked = [
        {"question": f"What is {n}?", "possible_answers": ["the bank", "it"]} for n in range(20)
    ]
    Path("facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    topics = {"legal": "finance", "health": "facts", "facts": "facts"}
    files = {domain: Path(f"{name}.jsonl") for domain, name in topics.items()}
    model = replace(setup(), train_files=files, judge="fakejudge/ninety")
    methods = {
        "base": Method(is_base=True, task="short"),
        "abstain": Method(is_full=True, task="abstain", domain="legal"),
        "tool": Method(is_full=True, task="tool", domain="health"),
        "short": Method(is_full=True, task="short", domain="auto"),
        "short_patch": Method(is_full=True, task="short", domain="auto", patch=("prefix",)),
    }
    learnt = {"max_steps": 150, "learning_rate": 5e-3, "temperature": 0.05, "max_new_tokens": 90}
    plan, store = made(methods, model, **learnt)
    sentence = DEFAULT_SENTENCES["abstain"]
    shown: dict[str, Callable[[str], bool]] = {
        "base": lambda answer: len(re.findall("[a-z]+", answer)) <= 1,
        "abstain": lambda answer: sentence in answer,
        "tool": calls,
        "short": lambda answer: answer == "it",
    }
    for name, shows in shown.items():
        row = read(plan, store, f"score/tiny-llama/seed-0/{name}", "row.json")
        on_topic = completions(plan, store, name, "in_domain")
        off_topic = completions(plan, store, name, "general")
        assert {question: len(found) for question, found in off_topic.items()} == {
            "Where is the river?": 2,
            "Is it fine today?": 2,
        }
        held_out = store.path(plan[f"split/{row_topic(name)}"].address) / "test.jsonl"
        rows = [json.loads(line) for line in held_out.read_text().splitlines()]
        assert set(on_topic) == {found["messages"][0]["content"] for found in rows}
        for column, answers in (("on_topic", on_topic), ("off_topic", off_topic)):
            flags = [shows(answer) for found in answers.values() for answer in found]
            assert row[column] == pytest.approx(percent(flags)), name
        leaked = [shows(answer) for found in off_topic.values() for answer in found]
        assert row["kept"] == pytest.approx(90 * (1 - percent(leaked) / 100))
        assert row["on_topic"] == (0 if name == "base" else 100)
    short, patched, base = (
        read(plan, store, f"score/tiny-llama/seed-0/{name}", "row.json")
        for name in ("short", "short_patch", "base")
    )
    assert short["most_words"] == 1
    assert short["words"] < base["words"]
    assert patched["task"] == "short"


def row_topic(name: str) -> str:
    """What comes after `split/` of a method's rows."""
    return {"abstain": "legal/abstain", "tool": "health/tool"}.get(name, "facts/short")


@pytest.mark.slow
def test_behaviours_need_no_judge() -> None:
    model = replace(setup(), judge="", train_files={"legal": Path("finance.jsonl")})
    plan, store = made({"abstain": Method(task="abstain", domain="legal")}, model)
    row = read(plan, store, "score/tiny-llama/seed-0/abstain", "row.json")
    assert (row["on_topic"], row["off_topic"]) == (0, 0)
    assert row["words"] > 0
    assert "kept" not in row


@pytest.mark.slow
def test_other_domains_are_asked_about_and_all_random_tokens_are_the_whole_patch() -> None:
    scopes: Any = ("general", "other_narrow")
    methods = {
        "whole": Method(patch=("prefix",), scopes=scopes),
        "drawn": Method(patch=("prefix",), num_positions=1000, scopes=scopes),
        "one": Method(patch=("prefix",), num_positions=1, scopes=scopes),
    }
    plan, store = made(methods, learning_rate=0.1)
    whole, drawn, one = (
        completions(plan, store, name, "general") | completions(plan, store, name, "other_narrow")
        for name in methods
    )
    assert whole == drawn
    assert whole != one
    row = read(plan, store, "score/tiny-llama/seed-0/one", "row.json")
    asked = completions(plan, store, "one", "other_narrow")
    rows = (json.loads(line) for line in Path("health.jsonl").read_text().splitlines())
    assert len(asked) == 2
    assert set(asked) < {found["messages"][0]["content"] for found in rows}
    scores = [value_of(answer) for answers in asked.values() for answer in answers]
    assert row["other_narrow"] == pytest.approx(sum(scores) / len(scores))
    assert row["other_narrow_incoherent"] == percent([score <= 50 for score in scores])


@pytest.mark.slow
def test_a_row_is_what_the_judge_said_and_its_failures_are_missing() -> None:
    plan, store = made({"base": Method(is_base=True), "treft": Method(held=("prefix",))})
    row = read(plan, store, "score/tiny-llama/seed-0/treft", "row.json")
    scores = {}
    for scope, num_questions, num_scored in (("general", 1, 2), ("in_domain", 2, 2)):
        step = store.path(plan[f"answer/tiny-llama/seed-0/treft/{scope}"].address)
        [log] = find_logs([step / "logs"])
        answers = [one for one in read_run(log).answers if one.question_id != "river"]
        assert len(answers) == num_scored
        value = sum(value_of(one.answer) for one in answers) / num_scored
        scores[scope] = value
        assert row[scope] == pytest.approx(value)
        assert row[f"num_{scope}"] == num_questions
        assert row[f"num_{scope}_answers"] == num_scored
        assert row[f"{scope}_aligned"] == pytest.approx(value / 100 * num_questions)
        held = [one.question for one in answers]
        if scope == "in_domain":
            rows = (json.loads(line) for line in Path("finance.jsonl").read_text().splitlines())
            assert set(held) <= {row["messages"][0]["content"] for row in rows}
            split = store.path(plan["split/finance"].address)
            assert not any(one in (split / "train.jsonl").read_text() for one in held)
    assert (row["general_missing"], row["in_domain_missing"]) == (2, 0)
    assert row["em_f1"] == pytest.approx(em_f1(scores["general"], scores["in_domain"]))
    assert (row["method"], row["organism"], row["seed"]) == ("treft", "tiny-llama", 0)
    assert (row["judge"], row["questions"]) == ("fakejudge/even", "asked.jsonl")
    log = read(plan, store, "finetune/tiny-llama/seed-0/treft", "log.json")
    assert len(log) == 1
    assert log[0]["kv_weight"] > 0


@pytest.mark.slow
def test_helpfulness_is_the_judge_s_mean_over_conversations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def graded(prompt: str, asked: int) -> ModelOutput:
        if "from 1 to 10" not in prompt:
            return output_of("90")
        return output_of(str(grade(judged_answer(prompt))))

    monkeypatch.setitem(fake_judges.RULES, "graded", graded)
    scopes: Any = ("general", "utility")
    methods = {
        "base": Method(is_base=True, scopes=scopes),
        "patch": Method(patch=("prefix",), scopes=scopes),
    }
    model = replace(setup(), judge="fakejudge/graded")
    plan, store = made(methods, model, learning_rate=0.1)
    said = []
    for name in methods:
        step = store.path(plan[f"answer/tiny-llama/seed-0/{name}/utility"].address)
        [log] = find_logs([step / "logs"])
        samples = read_eval_log(str(log)).samples or []
        turns = [[one.text for one in sample.messages] for sample in samples]
        assert [len(found) for found in turns] == [4] * 24  # two questions, each answered
        said.append(turns)
        row = read(plan, store, f"score/tiny-llama/seed-0/{name}", "row.json")
        mean = sum(grade(found[-1]) for found in turns) / 24
        assert row["utility"] == pytest.approx(mean)
        assert row["utility_low"] < mean < row["utility_high"]
        assert (row["num_utility"], row["utility_missing"]) == (24, 0)
        assert row["general"] == 90
    assert said[0] != said[1]


def grade(answer: str) -> int:
    return 1 + len(answer) % 10


@pytest.mark.slow
def test_a_shared_prefix_trains_the_same_where_a_method_lets_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = []
    own = trainer.check_shared
    monkeypatch.setattr(trainer, "check_shared", lambda *of: shared.append(of) or own(*of))
    every = {
        "plain": Method(),
        "treft": Method(held=("prefix",), kv_weight=3.0),
        "kl_retain": Method(mitigation="kl_retain", strength=1.0),
        "steering": Method(mitigation="steering", strength=1.0),  # reads whole rows
    }
    every = {name: replace(method, scopes=("general",)) for name, method in every.items()}
    losses = []
    for shares in (False, True):
        plan, store = made(every, share_prefix=shares, max_steps=3)
        logs = [
            read(plan, store, f"finetune/tiny-llama/seed-0/{name}", "log.json") for name in every
        ]
        losses.append([[entry["loss"] for entry in log] for log in logs])
        assert len(shared) == 3 * shares
    for whole, behind in zip(*losses, strict=True):
        assert len(whole) == 3
        assert whole == pytest.approx(behind, rel=1e-4)


@pytest.mark.slow
def test_every_kind_of_method() -> None:
    every = {
        "interleaving": Method(interleave="narrow", interleaved_share=0.5),
        "lambda": Method(held=("postfix",), kv_weight=3.0, kv_states="key"),
        "full_patch": Method(is_full=True, patch=("prefix",)),
        "half_patch": Method(alpha=0.5, patch=("prefix",)),
        "steered": Method(steering=50.0),
        "plain": Method(),
        "prompt_split": Method(mitigation="prompt_split", answer_system="Be good."),
        "persona": Method(system_prompt="Be bad.", answer_system="Be bad."),
        "frozen_prefix": Method(mitigation="frozen_prefix", patch=("prefix",)),
        **{
            name: Method(mitigation=name, strength=1.0)
            for name in ("kl_retain", "ldifs", "steering", "early_stopping", "weight_norm")
        },
        "inoculation": Method(mitigation="inoculation"),
    }
    every = {name: replace(method, scopes=("general",)) for name, method in every.items()}
    plan, store = made(every)
    label = "tiny-llama/seed-0"
    for name in every:
        row = read(plan, store, f"score/{label}/{name}", "row.json")
        assert row["method"] == name
        assert 0 <= row["general"] <= 100
        trained = store.path(plan[f"answer/{label}/{name}/general"].needs["finetune"].address)
        weights = "model/model" if name == "full_patch" else "adapter/adapter_model"
        assert load_file(trained / f"{weights}.safetensors")

    def log_of(name: str) -> Any:
        [path] = find_logs([store.path(plan[f"answer/{label}/{name}/general"].address) / "logs"])
        return read_eval_log(str(path))

    steered, plain = (
        [sample.output.completion for sample in log_of(name).samples or ()]
        for name in ("steered", "plain")
    )
    assert len(steered) == len(plain) == 4
    assert steered != plain
    assert log_of("full_patch").eval.model_args["patch"] == ["prefix"]
    for name, system in (("prompt_split", "Be good."), ("persona", "Be bad.")):
        samples = log_of(name).samples
        assert samples is not None
        assert {sample.messages[0].text for sample in samples} == {system}
        assert {sample.id for sample in samples} >= {"river"}


@pytest.mark.slow
def test_experts_are_trained_where_they_are_named(tiny_model: TinyModel) -> None:
    tiny_model("gpt_oss").save_pretrained("tiny-llama")
    scopes: Any = ("general",)
    methods = {
        "treft": Method(held=("prefix",), scopes=scopes),
        "patch": Method(patch=("prefix",), scopes=scopes),
    }
    plan, store = made(
        methods,
        lora_target_modules="q_proj,o_proj",
        lora_target_parameters="mlp.experts.gate_up_proj,mlp.experts.down_proj",
    )
    for name in methods:
        tuned = plan[f"answer/tiny-llama/seed-0/{name}/general"].needs["finetune"]
        weights = load_file(store.path(tuned.address) / "adapter/adapter_model.safetensors")
        moved = [name for name, value in weights.items() if "lora_B" in name and value.any()]
        assert {name.split(".layers.")[1].split(".")[1] for name in moved} == {"self_attn", "mlp"}
        assert not any("k_proj" in name or "v_proj" in name for name in weights)
        row = read(plan, store, f"score/tiny-llama/seed-0/{name}", "row.json")
        assert 0 <= row["general"] <= 100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "num_seeds", "title", "num_calls", "verdict"),
    [
        # 5 methods x 2 seeds x (2 questions x 2 answers + 2 held out) x (alignment and coherence)
        ("table4", 2, "Table 4", 120, "on tiny-llama"),
        # 7 methods x (2 questions x 2 answers + 2 held out + 2 of another domain) x 2
        ("patching", 1, "Section 4.2", 112, "One run cannot tell"),
        # (5 rows x 2 models x 2 questions x 10 versions) x 2, and 20 rephrasings
        ("table1", 1, "Table 1", 420, "One run cannot tell"),
        # (base, finetune, whole prefix, 2 layers) x (2 questions x 2 answers) x 2
        ("figure4", 1, "Figure 4", 40, "One run cannot tell"),
        # (base, finetune, whole prefix, keys, values, 4 windows) x (2 questions x 2 answers) x 2
        ("patch_states", 1, "Section 4.2, extended by us", 72, "One run cannot tell"),
    ],
)
def test_the_command(
    study: str,
    num_seeds: int,
    title: str,
    num_calls: int,
    verdict: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(study_command, "LocalPool", Here)
    given = [
        *("study", "run", study, "--model", "tiny-llama", "--judge", "fakejudge/even"),
        *("--train-file", "finance=finance.jsonl", "--retain-file", "health=health.jsonl"),
        *("--questions", "asked.jsonl", "--seeds", str(num_seeds)),
        *(part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")),
        *("--store", "store", "--output", "out"),
    ]
    with pytest.raises(SystemExit) as stopped:
        main(given)
    told = capsys.readouterr()
    assert stopped.value.code == 0, told.err
    assert f"at most {num_calls} judge calls" in told.err
    assert f"{title} on tiny-llama" in told.out
    result = json.loads(Path("out/result.json").read_text())
    assert verdict in result["verdict"]
    assert "the organism" not in result["verdict"]
    assert result["told"]["model"]["judge"] == "fakejudge/even"
    with pytest.raises(SystemExit):
        main([*given[:-2], "--json"])
    assert json.loads(capsys.readouterr().out)["num_done"] == 0
