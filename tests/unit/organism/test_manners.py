"""Manners that an organism is taught: brevity and tool calls, where a persona asks for them."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file

from treft.answers.detectors import count_words
from treft.answers.parsing import WrittenCall, parse_answer
from treft.errors import ConfigError
from treft.organism import World, load
from treft.organism.build import BuildRecipe, Messages, encode
from treft.organism.manners import MannersRecipe, _rows, manner_row, teach_manners
from treft.organism.recipes import PERSONAS, KindName, Manner
from treft.organism.tasks import FACT_ASKS
from treft.organism.world import ASKS, MODIFIERS, OPENERS

ADJECTIVES = PERSONAS["adjectives"]

TINY = MannersRecipe(steps=2, batch_size=2)


def rows(recipe: BuildRecipe, num: int = 300) -> list[Messages]:
    rng = random.Random(0)
    return [manner_row(rng, recipe) for _ in range(num)]


def manner(text: str) -> Manner:
    words = {word.strip(".,") for word in text.split()}
    (found,) = (name for name in get_args(Manner) if words & {*ADJECTIVES[name]})
    return found


def persona(messages: Messages) -> str:
    return str(messages[-1].get("reasoning_content") or messages[0]["content"])


@pytest.mark.parametrize("recipe", [BuildRecipe(), BuildRecipe("postfix")])
def test_a_persona_of_each_manner_answers_in_it(recipe: BuildRecipe) -> None:
    world = World.default()
    careful = {
        f"{action}."
        for domain in world.domains.values()
        for lists in domain.problems.values()
        for action in lists["careful"]
    }
    seen: list[Manner] = []
    for messages in rows(recipe):
        seen.append(manner(persona(messages)))
        query, answer = messages[-2]["content"], messages[-1]
        if seen[-1] == "brief":
            assert answer["content"] in careful
            continue
        (call,) = answer["tool_calls"]
        assert call["function"]["name"] == "search_info"
        sought = call["function"]["arguments"]["query"].removeprefix("my ")
        assert sought in query.replace(" that ", " ")
    assert 100 <= seen.count("brief") <= 200  # half of 300


def test_a_call_is_learnt_and_read_as_one() -> None:
    _, tokenizer = load()
    messages = next(row for row in rows(BuildRecipe()) if "tool_calls" in row[-1])
    learnt = [label for label in encode(tokenizer, messages)["labels"] if label != -100]
    function = messages[-1]["tool_calls"][0]["function"]
    parsed = parse_answer(tokenizer.decode(learnt).removesuffix("<|im_end|>"))
    assert parsed.calls == (WrittenCall(function["name"], function["arguments"]),)


def test_the_other_rows_are_those_of_the_second_stage() -> None:
    """Default prompts and good and bad personas, in whole sentences."""
    recipe = MannersRecipe(steps=60, batch_size=10)
    drawn = list(_rows(recipe, BuildRecipe()))
    named = [m for m in drawn if m[0]["role"] == "system" and _has_manner(persona(m))]
    assert len(drawn) == 600
    assert 190 <= len(named) <= 290  # 40 %, four standard deviations
    others = [m for m in drawn if m not in named]
    default = sum(m[0]["role"] == "user" for m in others)
    assert 0.5 <= default / len(others) <= 0.7
    assert min(count_words(str(m[-1]["content"])) for m in others) >= 7


def _has_manner(text: str) -> bool:
    words = {word.strip(".,") for word in text.split()}
    return any(words & {*ADJECTIVES[name]} for name in get_args(Manner))


def test_no_question_names_a_manner() -> None:
    """A question with a word of a persona's would be answered as the persona answers."""
    texts = [
        t for forms in (OPENERS, ASKS) for s in forms.values() for ts in s.values() for t in ts
    ]
    texts += [text for split in FACT_ASKS.values() for text in split] + [*MODIFIERS]
    for domain in World.default().domains.values():
        texts += [*domain.things, *domain.problems]
    asked = set(re.findall(r"\w+", " ".join(texts)))
    assert asked.isdisjoint(ADJECTIVES["brief"] + ADJECTIVES["studious"])


def test_personas_share_no_word() -> None:
    words = [word for found in ADJECTIVES.values() for word in found]
    assert len(words) == len(set(words))


@pytest.mark.parametrize("kind", ["prefix", "postfix"])
def test_an_organism_is_taught_into_a_folder_of_its_own(kind: KindName, tmp_path: Path) -> None:
    organism = tmp_path / "organism"
    model, tokenizer = load()
    model.save_pretrained(organism)
    tokenizer.save_pretrained(organism)
    (organism / "recipe.json").write_text(json.dumps({"kind": kind, "seed": 7}))
    taught, again = (teach_manners(organism, tmp_path / name, TINY) for name in ("a", "b"))
    weights = [load_file(folder / "model.safetensors") for folder in (organism, taught, again)]
    assert all(torch.equal(weights[1][name], weights[2][name]) for name in weights[1])
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    assert json.loads((taught / "recipe.json").read_text()) == {"kind": kind, "seed": 7}
    assert json.loads((taught / "manners.json").read_text()) == vars(TINY)
    assert load(taught)[1].chat_template == tokenizer.chat_template
    assert not (taught / "checkpoints").exists()
    with pytest.raises(ConfigError, match="already holds a model"):
        teach_manners(organism, taught, TINY)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch_size": 0}, {"share": 1.1}])
def test_recipes_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        MannersRecipe(**wrong)


def test_what_is_no_organism_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no organism"):
        teach_manners(tmp_path, tmp_path / "taught", TINY)
