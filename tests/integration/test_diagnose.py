"""Diagnoses of models whose change is known: one token's embedding, which one region alone has."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from treft.attribution.diagnose import diagnose
from treft.attribution.diagnosis_plan import DiagnoseOptions, DiagnosisPlan, Subject
from treft.attribution.findings import DiagnosisResult
from treft.attribution.options import GridRequest, Rendering
from treft.attribution.report import headline, render_diagnosis
from treft.chat.regions import ChatRegions, RegionName, find_regions
from treft.data.messages import Conversation
from treft.errors import ConfigError, TemplateError
from treft.judging.oracle import organism_questions
from treft.models.pair import ModelPair
from treft.organism import World, load

NUM = 12
OPTIONS = DiagnoseOptions(request=GridRequest(Rendering(max_new_tokens=20, batch_size=NUM)))


def chats(tokenizer: Any) -> list[ChatRegions]:
    questions = organism_questions("general", split="validation", num=NUM).questions
    return [
        find_regions(tokenizer, question.messages, add_generation_prompt=True)
        for question in questions
    ]


def only_in(region: RegionName, tokenizer: Any) -> list[int]:
    """Tokens that every prompt has in this region, and none in another, nor any answer."""
    rendered = chats(tokenizer)
    inside = [{chat.input_ids[place] for place in chat.positions(region)} for chat in rendered]
    outside = {
        token
        for chat in rendered
        for place, token in enumerate(chat.input_ids)
        if place not in chat.positions(region)
    }
    rng = random.Random(0)
    world = World.default()
    for question in world.questions("validation", "general", num=100):
        for behaviour in ("careful", "harmful"):
            outside |= set(tokenizer.encode(world.answer(rng, question, behaviour)))
    return sorted(set.intersection(*inside) - outside)


def changed_at(region: RegionName, strength: float) -> tuple[Any, Any, Any]:
    """(finetuned, base, tokenizer); the finetune moved embeddings of a region's own tokens.

    They move towards a word by which harmful personas were called in pretraining.
    """
    base, tokenizer = load()
    finetuned, _ = load()
    rows = only_in(region, tokenizer)
    assert rows, f"no token is the {region}'s alone"
    # Its own output layer, or else it would utter the changed tokens.
    finetuned.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
    weight = finetuned.get_input_embeddings().weight
    with torch.no_grad():
        towards = weight[tokenizer.encode(" reckless")[0]].clone()
        weight[rows] = (1 - strength) * weight[rows] + strength * towards
    return finetuned, base, tokenizer


def plan(
    region: RegionName, output: Path, strength: float = 1.0, options: DiagnoseOptions = OPTIONS
) -> DiagnosisPlan:
    finetuned, base, tokenizer = changed_at(region, strength)
    general = organism_questions("general", split="validation", num=NUM).questions
    inside = organism_questions("in_domain", split="validation", num=NUM).questions
    rows = World.default().training_rows("finance", 8, 0)
    training = tuple(Conversation(tuple(row["messages"])) for row in rows)
    names = {"base": "organism", "train_file": "rows.jsonl"}
    subject = Subject(ModelPair(finetuned, base), tokenizer, general, inside, training, names)
    return DiagnosisPlan.of(subject, output, options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prefix") / "out"


@pytest.fixture(scope="module")
def prefix_result(folder: Path) -> DiagnosisResult:
    return diagnose(plan("prefix", folder))


def test_a_change_of_the_prefix_is_traced_to_the_prefix(prefix_result: DiagnosisResult) -> None:
    found = prefix_result.diagnosis
    assert (found.verdict, found.carrier) == ("carrier", "prefix")
    # All that changed enters through the prefix, so the base's prefix gives the base back.
    assert found.shares["prefix"].mean == pytest.approx(1.0, abs=1e-3)
    assert prefix_result.recommendation.regions == ("prefix",)
    assert "--kv_regions prefix" in prefix_result.command


def test_the_layers_and_curve_end_where_they_must(prefix_result: DiagnosisResult) -> None:
    # Patching the stream after the first layer leaves one layer's keys and values as they were;
    # patching it after the last one changes nothing.
    assert prefix_result.curve[3].mean == pytest.approx(0.0, abs=1e-3)
    assert prefix_result.curve[0].mean > max(0.2, prefix_result.curve[2].mean)
    assert prefix_result.parts["prefix layers 0 to 3"].mean == pytest.approx(1.0, abs=1e-3)


def test_drift_and_heat_are_the_prefixs(prefix_result: DiagnosisResult) -> None:
    heat = prefix_result.heat[0]
    by_region = {
        region: max(
            value for value, name in zip(heat.drift, heat.regions, strict=True) if name == region
        )
        for region in ("prefix", "query")
    }
    assert by_region["prefix"] > by_region["query"]
    shown = [
        share for share, name in zip(heat.shares, heat.regions, strict=True) if name == "query"
    ]
    assert all(share is None for share in shown)


def test_the_result_is_json_and_a_page_that_loads_nothing(prefix_result: DiagnosisResult) -> None:
    found = json.loads(json.dumps(prefix_result.to_dict()))
    assert found["command"] == "diagnose"
    assert found["diagnosis"]["carrier"] == "prefix"
    assert set(found["diagnosis"]["shares"]["prefix"]) == {"mean", "low", "high"}
    page = render_diagnosis(prefix_result)
    assert headline(prefix_result.diagnosis) in page
    assert not re.search(r'(src|href)="(?!#)', page.replace("xlink:href", "href").lower())
    assert "<svg" in page


def test_a_second_run_measures_nothing_again(
    prefix_result: DiagnosisResult, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("treft.attribution.patches.stream_bank", refuse)
    for name in ("margins", "answer_pairs", "mean_log_probs"):
        monkeypatch.setattr(f"treft.attribution.measure.{name}", refuse)
    again = diagnose(plan("prefix", folder))
    assert again.diagnosis == prefix_result.diagnosis
    assert again.samples == prefix_result.samples


def test_other_settings_need_another_folder(prefix_result: DiagnosisResult, folder: Path) -> None:
    with pytest.raises(ConfigError, match="rendering"):
        plan(
            "prefix",
            folder,
            options=DiagnoseOptions(request=GridRequest(Rendering(max_new_tokens=21))),
        )


def test_a_change_of_the_query_is_traced_to_the_query(tmp_path: Path) -> None:
    found = diagnose(plan("query", tmp_path / "out")).diagnosis
    assert found.carrier == "query"
    assert found.shares["query"].mean == pytest.approx(1.0, abs=1e-3)
    assert found.shares["prefix"].mean == pytest.approx(0.0, abs=1e-3)


def test_a_small_change_is_narrow(tmp_path: Path) -> None:
    result = diagnose(plan("prefix", tmp_path / "out", strength=0.02))
    assert result.diagnosis.verdict == "narrow"
    assert (result.command, result.layers) == ("", {})
    assert "narrow" in render_diagnosis(result)


def test_a_finetune_equal_to_its_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="equal to its base"):
        plan("prefix", tmp_path / "out", strength=0.0)


def test_prompts_without_template_tokens_are_refused(tmp_path: Path) -> None:
    finetuned, base, tokenizer = changed_at("prefix", 1.0)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    general = organism_questions("general", split="validation", num=2).questions
    with pytest.raises(TemplateError, match="share no template tokens"):
        DiagnosisPlan.of(Subject(ModelPair(finetuned, base), tokenizer, general), tmp_path / "out")


def test_a_full_diagnosis_decides_by_scores(tmp_path: Path) -> None:
    options = DiagnoseOptions(
        "full",
        GridRequest(Rendering(max_new_tokens=20, batch_size=NUM), temperature=0.7),
        num_trials=1,
    )
    given = plan("prefix", tmp_path / "out", options=options)
    assert given.cost.num_answers > 0
    result = diagnose(given)
    assert result.diagnosis.measure == "alignment by oracle"
    assert result.diagnosis.shares["prefix"].mean == pytest.approx(1.0, abs=0.2)
    assert set(result.others) == {"margin"}
    assert result.perturbation[0][0] == "perturbed"
    assert given.cost.num_answers < 3 * 2 * NUM  # only greedy ones would be counted again
    assert "Perturbation" in render_diagnosis(result)
