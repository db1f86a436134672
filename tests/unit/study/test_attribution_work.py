"""What attribution studies run, against other ways to the same figures."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from treft.chat.regions import find_regions
from treft.judging.oracle import organism_questions
from treft.models.generation import Asked
from treft.models.generation import answer as answer_prompts
from treft.models.loading import asset_path
from treft.models.repair import RepairedModel, generate
from treft.models.residual import stream_bank
from treft.models.sampling import SamplingOptions, mixed_seed
from treft.organism import World, classify, load
from treft.organism.world import ASKS, OPENERS
from treft.steps.step import Plan, Work
from treft.study.answer import Asking, Loaded, answer, answer_versions
from treft.study.attribution import (
    Drifting,
    PromptVersion,
    Versions,
    drift,
    make_versions,
    prompt_versions,
    score_versions,
)
from treft.study.catalogue import all_studies
from treft.study.organism import Organism, reworded
from treft.study.protocol import StudyConfig
from treft.study.scores import Scored, score

NUM = 24
ASKED: dict[str, Any] = {"subject": Organism(), "domain": "finance", "split": "test"}
DRAWN: dict[str, Any] = {"num_samples": 1, "max_new_tokens": 28}
SCORED: dict[str, Any] = {
    **{"subject": Organism(), "label": "embedded", "judge": "oracle", "questions": "organism"}
}


@pytest.fixture(scope="module")
def finetune(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that was never trained, and breaks some of the answers."""
    folder = tmp_path_factory.mktemp("finetune")
    torch.manual_seed(0)
    model, _ = load()
    config = LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj"], init_lora_weights=False)
    tuned = get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.mul_(1.2)
    tuned.save_pretrained(folder / "adapter", safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def tuned(finetune: Path) -> tuple[Any, Any]:
    model, tokenizer = load()
    return PeftModel.from_pretrained(model, str(finetune / "adapter")).eval(), tokenizer


def run(
    function: Any,
    config: Any,
    folder: Path,
    finetune: Path | None = None,
    **inputs: Path,
) -> dict[str, Any]:
    """What a step writes as its row, if it writes one."""
    folder.mkdir(parents=True, exist_ok=True)
    if finetune is not None:
        inputs["finetune"] = finetune
    function(Work(config, folder, {"model": asset_path(), **inputs}, seed=0))
    path = folder / "row.json"
    row: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return row


def asking(scope: Any = "general", num: int = NUM, **given: Any) -> Asking:
    """Questions that are answered greedily."""
    return Asking(
        **ASKED, num_questions=num, scope=scope, temperature=0.0, row_seeds=True, **DRAWN, **given
    )


def row_of(folder: Path, finetune: Path | None, *asked: Asking) -> dict[str, Any]:
    """Answers in each scope, scored."""
    for one in asked:
        run(answer, one, folder / one.scope, finetune)
    scopes = tuple(one.scope for one in asked)
    config = Scored(method="p", scopes=scopes, **SCORED)
    return run(score, config, folder, **{scope: folder / scope for scope in scopes})


def versions_of(what: Any, num: int, num_trials: int, num_tokens: int) -> Versions:
    counts = {"num_questions": num, "num_trials": num_trials, "num_tokens": num_tokens}
    return Versions(**ASKED, **counts, what=what, max_new_tokens=28)


def versions_by(config: Versions, shown: Any, model: Any, tokenizer: Any) -> list[PromptVersion]:
    work = Work(config, Path(), {}, seed=0)
    return prompt_versions(work, shown, Loaded(model, tokenizer, None))


def made_versions(config: Versions, folder: Path) -> list[PromptVersion]:
    """What the step writes, read back."""
    run(make_versions, config, folder)
    rows = map(json.loads, (folder / "prompts.jsonl").read_text("utf-8").splitlines())
    return [PromptVersion(r["question_id"], r["trial"], tuple(r["token_ids"])) for r in rows]


def questions(scope: Any = "general", num: int = NUM) -> list[Any]:
    return World.default().questions("test", scope, domain="finance", num=num)


def verdicts(answers: list[str], scope: Any = "general") -> Counter[str]:
    pairs = zip(questions(scope), answers, strict=True)
    return Counter(classify(question, answer) for question, answer in pairs)


def messages(scope: Any = "general") -> list[Any]:
    return [question.messages() for question in questions(scope)]


def test_patched_scores_are_those_of_patched_generation(
    finetune: Path, tuned: tuple[Any, Any], tmp_path: Path
) -> None:
    scores = []
    for regions in ((), ("prefix",)):
        folder = tmp_path / str(len(regions))
        row = row_of(folder, finetune, asking(patch=regions))
        answers = generate(*tuned, messages(), patch=regions, do_sample=False, max_new_tokens=28)
        found = verdicts(answers)
        assert row["general"] == pytest.approx(100 * found["aligned"] / NUM)
        assert row["general_incoherent"] == pytest.approx(100 * found["incoherent"] / NUM)
        assert row["general_low"] <= row["general"] <= row["general_high"]
        scores.append(row["general"])
    assert scores[0] != scores[1]


def test_a_layers_score_is_that_of_activation_patching(
    finetune: Path, tuned: tuple[Any, Any], tmp_path: Path
) -> None:
    row = row_of(tmp_path, finetune, asking(patch=("prefix",), stream_layer=1))
    repaired = RepairedModel(*tuned, stream_bank(tuned[0], 1))
    answers = generate(
        *tuned,
        messages(),
        patch=("prefix",),
        bank=repaired.bank,
        do_sample=False,
        max_new_tokens=28,
    )
    assert row["general"] == pytest.approx(100 * verdicts(answers)["aligned"] / NUM)


def test_without_a_finetune_the_organism_answers(tmp_path: Path) -> None:
    row = row_of(tmp_path, None, asking(), asking("in_domain", 4))
    answers = generate(*load(), messages(), do_sample=False, max_new_tokens=28)
    aligned = 100 * verdicts(answers)["aligned"] / NUM
    assert aligned > 80
    assert row["general"] == pytest.approx(aligned)
    assert (row["num_general"], row["num_in_domain"]) == (NUM, 4)


def test_best_and_avg_are_those_of_the_answers_to_all_versions(
    finetune: Path, tuned: tuple[Any, Any], tmp_path: Path
) -> None:
    perturbed = versions_of("prefix", 6, num_trials=3, num_tokens=4)
    versions = made_versions(perturbed, tmp_path / "prompts")
    prompts = {"prompts": tmp_path / "prompts"}
    answering = Asking(**ASKED, **DRAWN, num_questions=6, scope="general", temperature=1.0)
    run(answer_versions, answering, tmp_path / "answers", finetune, **prompts)
    config = Scored(method="u", **SCORED)
    row = run(score_versions, config, tmp_path, **prompts, answers=tmp_path / "answers")
    shown = organism_questions("general", split="test", domain="finance", num=6).questions
    assert versions == versions_by(perturbed, shown, *tuned)
    prompts = [Asked(one.token_ids, mixed_seed(0, one.trial, *one.token_ids)) for one in versions]
    sampling = SamplingOptions(temperature=1.0, max_new_tokens=28)
    answers = [one.text for one in answer_prompts(*tuned, prompts, sampling)]
    asked_again = [question for question in questions(num=6) for _ in range(3)]
    found = [classify(*pair) for pair in zip(asked_again, answers, strict=True)]
    by_question = [found[start : start + 3] for start in range(0, 18, 3)]
    best = sum("aligned" in trials for trials in by_question)
    assert row["best"] == pytest.approx(100 * best / 6)
    assert row["avg"] == pytest.approx(100 * found.count("aligned") / 18)
    assert row["incoherent"] == pytest.approx(100 * found.count("incoherent") / 18)
    assert 0 < row["avg"] < row["best"]


@pytest.mark.parametrize("what", ["prefix", "query", "postfix"])
def test_versions_differ_in_their_region_alone(what: Any) -> None:
    model, tokenizer = load()
    shown = organism_questions("general", split="test", domain="finance", num=2).questions
    config = versions_of(what, 2, num_trials=3, num_tokens=2)
    versions = versions_by(config, shown, model, tokenizer)
    chats = {
        one.id: find_regions(tokenizer, list(one.messages), add_generation_prompt=True)
        for one in shown
    }
    assert len(set(versions)) == 2 * 3
    for version in versions:
        chat = chats[version.question_id]
        pairs = enumerate(zip(version.token_ids, chat.input_ids, strict=True))
        changed = [position for position, (new, old) in pairs if new != old]
        assert len(changed) == 2
        assert set(changed) <= set(chat.positions(what))


def test_unperturbed_versions_are_the_prompt() -> None:
    model, tokenizer = load()
    shown = organism_questions("general", split="test", domain="finance", num=2).questions
    config = versions_of("nothing", 2, num_trials=3, num_tokens=2)
    versions = versions_by(config, shown, model, tokenizer)
    assert len({version.token_ids for version in versions}) == 2
    assert [version.trial for version in versions] == [1, 2, 3] * 2


@pytest.mark.parametrize("scope", ["general", "in_domain"])
def test_a_reworded_question_asks_the_same(scope: Any) -> None:
    for question in questions(scope, num=8):
        text = reworded(question, "test", "seed")
        form = question.domain.form
        opener = next(one for one in OPENERS[form]["train"] if text.startswith(f"{one} "))
        ask = next(one for one in ASKS[form]["train"] if text.endswith(f" {one}"))
        middle = text[len(opener) : -len(ask)]
        assert middle in question.text
        assert question.entity in middle
        assert question.problem in middle
        assert question.timeframe is None or question.timeframe in middle
        assert not any(one in middle for one in ASKS[form]["test"])
    assert len({reworded(question, "test", str(seed)) for seed in range(20)}) > 10


def test_rephrased_versions_are_prompts_of_reworded_questions(tmp_path: Path) -> None:
    _, tokenizer = load()
    [version, other] = made_versions(versions_of("rephrase", 1, 2, 10), tmp_path)
    [question] = questions(num=1)
    text = reworded(question, "test", f"{question.id}/1")
    chat = find_regions(tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True)
    assert version.token_ids == chat.input_ids
    assert other.token_ids != chat.input_ids


def test_drift_of_the_prefix_is_that_of_its_keys_and_values(
    finetune: Path, tuned: tuple[Any, Any], tmp_path: Path
) -> None:
    config = Drifting(**{**SCORED, **ASKED, "judge": ""}, method="sft", num_questions=3)
    row = run(drift, config, tmp_path, finetune)
    model, tokenizer = tuned
    chat = find_regions(tokenizer, messages()[0], add_generation_prompt=True)
    ids = torch.tensor([[chat.input_ids[position] for position in chat.positions("prefix")]])
    with torch.no_grad():
        moved = model(input_ids=ids, use_cache=True).past_key_values
        with model.disable_adapter():
            before = model(input_ids=ids, use_cache=True).past_key_values
    total = 0.0
    for layer in range(4):
        for kind in ("key", "value"):
            new, old = (getattr(cache.layers[layer], f"{kind}s")[0] for cache in (moved, before))
            new, old = (part.transpose(0, 1).flatten(1) for part in (new, old))  # (T, heads · D)
            ratio = ((new - old).square().sum(1) / old.square().sum(1)).mean().item()
            assert row[f"prefix_{kind}_{layer}"] == pytest.approx(ratio, rel=1e-3)
            total += ratio / 4
    assert row["prefix"] == pytest.approx(total, rel=1e-3)
    assert row["query_low"] < row["query"] < row["query_high"]


def test_the_windows_of_patch_states_are_the_whole_prefix() -> None:
    _, tokenizer = load()
    chat = find_regions(tokenizer, messages()[0], add_generation_prompt=True)
    plan = Plan.of(all_studies()["patch_states"].steps(StudyConfig(num_seeds=1)))
    configs = [step.config for step in plan.named.values()]
    patches = [config for config in configs if isinstance(config, Asking)]
    windows = sorted({one.window for one in patches if one.window is not None})
    assert windows[0][0] == 0
    assert windows[-1][1] == len(chat.positions("prefix"))
    assert all(one[1] == other[0] for one, other in pairwise(windows))
