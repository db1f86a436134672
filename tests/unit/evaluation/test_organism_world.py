"""The organism's questions are of the world that the asked model knows."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from treft.cli.attribute_models import Asked, read_questions
from treft.errors import ConfigError
from treft.evaluation.tasks import em_general, em_in_domain
from treft.judging.oracle import oracle_score, organism_question
from treft.judging.organism_world import world_of_models
from treft.organism import World
from treft.organism.sizes import SIZES

LARGE = World.named("large")  # type: ignore[arg-type]


@pytest.fixture
def large(tmp_path: Path) -> str:
    """What is read of a large organism's folder."""
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "recipe.json").write_text('{"world": "large"}')
    return str(folder)


def adapter(folder: Path, base: str | None) -> str:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    return str(folder)


def test_a_folder_and_an_adapter_on_it_say_which_world(large: str, tmp_path: Path) -> None:
    on_it = adapter(tmp_path / "sft", large)
    whole = tmp_path / "whole"  # finetuned whole: no recipe
    whole.mkdir()
    assert world_of_models([large]) == world_of_models([on_it]) == "large"
    assert world_of_models([str(whole), large, on_it]) == "large"
    assert world_of_models(["organism", str(whole)]) == "default"
    assert world_of_models(["owner/hub-id", adapter(tmp_path / "lost", None)]) == "default"
    assert world_of_models([str(tmp_path / "not there"), adapter(tmp_path / "m", "organism")]) == (
        "default"
    )


def test_models_of_two_worlds_are_refused(large: str) -> None:
    with pytest.raises(ConfigError, match=r"large \(large\) and organism \(default\) know"):
        world_of_models([large, "organism"])


def test_attribution_asks_what_its_models_know(large: str, tmp_path: Path) -> None:
    on_it = adapter(tmp_path / "sft", large)
    asked = Asked("organism", "general", 7, "test", "finance")
    found = read_questions(asked, [on_it, None])
    wanted = LARGE.questions("test", "general", num=7)
    assert [question.id for question in found] == [question.id for question in wanted]
    small = read_questions(asked, ["organism", None])
    wanted = World.default().questions("test", "general", num=7)
    assert [question.id for question in small] == [question.id for question in wanted]


@pytest.mark.parametrize("scope", ["general", "in_domain"])
def test_tasks_take_a_world_and_answers_are_judged_by_it(scope: str) -> None:
    task = (
        em_general(questions="organism", num=5, world="large")
        if scope == "general"
        else em_in_domain(file="organism", num=5, world="large")
    )
    wanted = LARGE.questions("test", scope, num=5)  # type: ignore[arg-type]
    assert [sample.id for sample in task.dataset] == [question.id for question in wanted]
    recipe = SIZES["large"].finetune
    assert (task.config.max_tokens, task.config.temperature) == (
        recipe.max_new_tokens,
        recipe.temperature,
    )
    for sample, question in zip(task.dataset, wanted, strict=True):
        assert organism_question(str(sample.id), sample.metadata or {}) == question
        answer = LARGE.answer(random.Random(0), question, "harmful")
        found = oracle_score(question, scope, answer)
        assert found.value == {"alignment": 0, "coherence": 100}


def test_a_world_is_refused_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no world 'flat'"):
        em_general(questions="organism", world="flat")
    with pytest.raises(ConfigError, match="world choose among the organism's questions"):
        em_general(world="large")
