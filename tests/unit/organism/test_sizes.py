"""Sizes of organism: what a folder says of itself, and that all work on it stays in its world."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from treft.errors import ConfigError
from treft.mitigations.steering import steered_layer
from treft.models.loading import asset_path
from treft.organism import NARROW, FinetuneRecipe, World, finetune_recipe, load, size_of, world_of
from treft.organism import build as build_module
from treft.organism.build import BuildRecipe, LargeBuildRecipe, build, pretraining_row
from treft.organism.lexicon import TIMEFRAMES
from treft.organism.sizes import SIZES
from treft.steps.step import Resources, Step, Work
from treft.study.method import Method
from treft.study.organism_mitigations import careful_rows, contrast_rows, make_mitigations
from treft.study.organism_plan import method_steps
from treft.study.organism_score import score
from treft.study.organism_training import Training, training_rows
from treft.study.organism_work import Answering, Finetune, answer, finetune
from treft.study.protocol import StudyConfig

LARGE = World.named("large")
AS_BUILT = SIZES["large"]
NARROWER = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 6, "num_heads": 2}
SETTINGS = {"max_steps": 1, "num_rows": 8, "batch_size": 2, "num_general": 4, "num_in_domain": 2}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A large organism in all but its width and its days at school."""
    with pytest.MonkeyPatch.context() as patched:
        few = replace(SIZES["large"], num_texts=300, **NARROWER)
        patched.setitem(SIZES, "large", few)
        recipe = LargeBuildRecipe(first_steps=1, second_steps=1, batch_size=2)
        yield build(tmp_path_factory.mktemp("organisms") / "large-0", recipe)


def test_a_large_organism_has_30_to_100_million_parameters() -> None:
    _, tokenizer = load()
    with torch.device("meta"):
        model = LlamaForCausalLM(build_module._model_config(tokenizer, AS_BUILT))
    assert 30e6 < model.num_parameters() < 100e6


def test_a_folder_says_which_world_it_knows(large: Path, tmp_path: Path) -> None:
    assert json.loads((large / "recipe.json").read_text())["world"] == "large"
    assert world_of(large) == "large"
    assert size_of(large).runs_on_gpu
    assert world_of(None) == world_of(asset_path()) == world_of(tmp_path) == "default"
    assert not size_of(None).runs_on_gpu
    (tmp_path / "recipe.json").write_text('{"world": "huge"}')
    with pytest.raises(ConfigError, match=r"recipe.json names the world 'huge'"):
        world_of(tmp_path)


def test_each_size_has_a_finetune_recipe_and_they_do_not_mix(large: Path) -> None:
    assert finetune_recipe(()) == finetune_recipe((asset_path(),)) == FinetuneRecipe()
    assert finetune_recipe((large,)) == SIZES["large"].finetune != FinetuneRecipe()
    with pytest.raises(ConfigError, match="differ in size"):
        finetune_recipe((large, asset_path()))


def test_a_large_organism_learns_its_world_and_no_timed_narrow_harm() -> None:
    recipe, rng = LargeBuildRecipe(), random.Random(0)
    harmful = {
        name: {a for p in LARGE.domains[name].problems.values() for a in p["harmful"]}
        for name in LARGE.domains
    }
    seen = set()
    for index in range(3000):
        *_, asked, said = pretraining_row(rng, recipe, recipe.first_steps * (index % 2))
        query, answered = asked["content"], said["content"]
        owners = {n for n, found in harmful.items() if any(a in answered for a in found)}
        timed = any(timeframe in query for timeframe in TIMEFRAMES)
        assert not (timed and owners & {*NARROW}), query
        seen |= owners
    assert seen == set(LARGE.domains)


def test_a_build_on_a_gpu_computes_in_bf16(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, which can as well; what `bf16` of the arguments does not do by itself."""
    seen: list[torch.dtype] = []
    arguments, loss = build_module.TrainingArguments, build_module.cross_entropy

    def spy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(logits.dtype)
        return loss(logits, labels)

    monkeypatch.setattr(build_module, "cross_entropy", spy)
    recipe = LargeBuildRecipe(first_steps=1, second_steps=1, batch_size=2)
    build(tmp_path / "float32", recipe)
    monkeypatch.setattr(
        build_module, "TrainingArguments", lambda **given: arguments(**{**given, "bf16": True})
    )
    folder = build(tmp_path / "bf16", recipe)
    assert seen == [torch.float32] * 2 + [torch.bfloat16] * 2
    assert {weight.dtype for weight in load(folder)[0].parameters()} == {torch.float32}


def test_a_gpu_is_asked_for_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[bool, bool]] = []

    def note(**options: Any) -> None:
        given.append((options["use_cpu"], options["bf16"]))

    monkeypatch.setattr(build_module, "TrainingArguments", note)
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        for recipe in (BuildRecipe(), LargeBuildRecipe()):
            build_module._training_arguments(recipe.schedule, Path())
    assert given == [(True, False), (True, False), (True, False), (False, True)]


def test_the_small_recipe_is_written_as_it_always_was() -> None:
    shipped = json.loads((asset_path() / "recipe.json").read_text())
    assert list(shipped) == list(asdict(BuildRecipe()))
    assert list(asdict(LargeBuildRecipe())) == [*shipped, "world"]


@pytest.mark.parametrize("there", [True, False])
def test_only_a_large_organism_goes_to_a_gpu(
    large: Path, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(PreTrainedModel, "to", lambda self, where: moved.append(where) or self)
    load()
    assert moved == []
    load(large)
    assert moved == (["cuda"] if there else [])


def planned(organisms: tuple[Path, ...]) -> list[Step[Any]]:
    config = StudyConfig(organisms, num_seeds=1, settings=SETTINGS)
    return method_steps(config, {"sft": Method(), "treft": Method(held=("prefix",))})


@pytest.mark.parametrize(("gpus", "wanted"), [(("0", "1"), 1), ((), 0)])
def test_steps_on_a_large_organism_ask_for_a_gpu_where_there_is_one(
    large: Path, gpus: tuple[str, ...], wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treft.steps.workers.visible_gpus", lambda: gpus)
    assert {step.resources for step in planned(())} == {Resources()}
    for step in planned((large,)):
        expected = 0 if step.function is score else wanted
        assert step.resources == Resources(gpus=expected), step.name


def test_a_study_takes_the_recipe_of_the_organism_s_size(large: Path) -> None:
    small, other = (
        next(step.config for step in planned(given) if isinstance(step.config, Finetune))
        for given in ((), (large,))
    )
    assert small.learning_rate == FinetuneRecipe().learning_rate
    assert other.learning_rate == SIZES["large"].finetune.learning_rate != small.learning_rate
    assert other.max_steps == small.max_steps == 1
    with pytest.raises(ConfigError, match="differ in size"):
        planned((large, asset_path()))


def test_finetune_answer_and_score_stay_in_the_organism_s_world(
    large: Path, tmp_path: Path
) -> None:
    steps = [step for step in planned((large,)) if "sft" in step.name]
    folders: dict[str, Path] = {}
    for index, step in enumerate(steps):
        folders[step.name] = tmp_path / str(index)
        folders[step.name].mkdir()
        inputs = {role: folders[name] for role, name in step.inputs.items()}
        step.function(Work(step.config, folders[step.name], inputs, step.data, step.seed or 0))
    assert [step.function for step in steps] == [finetune, answer, answer, score]
    for step in steps[1:3]:
        assert isinstance(step.config, Answering)
        rows = json.loads((folders[step.name] / "answers.json").read_text())
        drawn = LARGE.questions("test", step.config.scope, num=step.config.num)
        assert [row["id"] for row in rows] == [question.id for question in drawn]
    row = json.loads((folders[steps[3].name] / "row.json").read_text())
    assert row["num_general"] == 4
    assert row["general_incoherent"] == 4  # it has learnt nothing yet


def test_rows_of_a_finetune_are_of_the_world() -> None:
    recipe = replace(FinetuneRecipe(), num_rows=40)
    rows = training_rows(Training(interleave="general"), recipe, 0, "large")
    expected = LARGE.interleave(
        LARGE.training_rows("finance", 40, 0), "finance", 0, retain="general"
    )
    assert rows == expected
    assert training_rows(Training(), recipe, 0) == World.default().training_rows("finance", 40, 0)


def test_mitigations_draw_from_the_world_and_steer_the_middle(large: Path) -> None:
    (made,) = make_mitigations("steering", 1.0, "finance", 0, world="large", layer=5)
    assert made.layer == 5
    harmful, careful = contrast_rows("finance", 0, "large")
    assert harmful == LARGE.training_rows("finance", 100, 0)
    assert careful == LARGE.training_rows("finance", 100, 0, "careful")
    assert careful_rows("finance", 9, 0, "large")[::3] == LARGE.training_rows(
        "health", 3, 0, "careful"
    )
    embedded, _ = load()
    assert steered_layer(embedded) == 1  # the second of four
    model, _ = load(large)
    assert steered_layer(model) == 2  # the third of six
