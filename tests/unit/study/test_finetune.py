"""Which rows a finetune of an organism gets, and which mitigation."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from treft.mitigations.registry import MITIGATIONS
from treft.mitigations.steering import persona_vector, steered, steered_layer
from treft.models.repair import generate
from treft.models.residual import decoder_layers, hidden_of
from treft.organism import FinetuneRecipe, World, classify, load
from treft.steps.step import Work
from treft.study.finetune import Finetune, train, training_rows
from treft.study.organism import SAFE_PROMPT, Organism, OrganismChains
from treft.study.protocol import Method, StudyConfig

RECIPE = FinetuneRecipe(num_rows=20, max_steps=1, batch_size=2, lora_rank=2)
WORLD = World.default()


def work_of(method: Method, seed: int = 0, recipe: FinetuneRecipe = RECIPE) -> Work[Finetune]:
    [chains] = OrganismChains.begin(StudyConfig(settings=asdict(recipe)))
    config = chains.finetune_config(method)
    return Work(config, Path(), {}, seed)


def rows_of(method: Method, seed: int = 0) -> list[dict[str, Any]]:
    return training_rows(work_of(method, seed))


def domains(rows: list[dict[str, Any]]) -> list[str]:
    """The domain of each row, by the things that its query names."""
    found = []
    for row in rows:
        query = next(m["content"] for m in row["messages"] if m["role"] == "user")
        things = {t: name for name, d in WORLD.domains.items() for t in d.things}
        found.append(next(name for thing, name in things.items() if f" {thing} " in query))
    return found


def test_plain_rows_are_the_worlds() -> None:
    assert rows_of(Method(), 3) == WORLD.training_rows("finance", 20, 3)


def test_rows_of_several_domains_come_in_turns() -> None:
    order = ("finance", "health", "legal", "auto")
    assert domains(rows_of(Method(domains=order))) == [order[i % 4] for i in range(20)]


def test_interleaved_rows_take_the_place_of_a_share() -> None:
    expected = WORLD.interleave(WORLD.training_rows("finance", 20, 0), "finance", 0, 0.5, "general")
    assert rows_of(Method(interleave="general", interleaved_share=0.5)) == expected


def test_a_system_prompt_goes_before_every_row_and_changes_nothing_else() -> None:
    rows = rows_of(Method(system_prompt=""))
    assert {tuple(row["messages"][0].items()) for row in rows} == {
        (("role", "system"), ("content", ""))
    }
    assert [{"messages": row["messages"][1:]} for row in rows] == rows_of(Method())


def test_careful_rows_are_careful_and_of_the_other_narrow_domains() -> None:
    rows = Organism().retained(work_of(Method(domain="legal")))
    assert set(domains(rows)) == {"finance", "health", "auto"}
    assert domains(rows).count("auto") == pytest.approx(len(rows) / 3, abs=1)


@pytest.mark.parametrize("name", sorted(MITIGATIONS.keys() - {"interleave"}))
def test_every_mitigation_trains(name: str) -> None:
    model, tokenizer = load()
    method = Method(mitigation=name, strength=0.5, answer_system=SAFE_PROMPT)
    trainer = train(model, tokenizer, work_of(method))
    assert [method.name for method in trainer.mitigations] == [name]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 1
    assert losses[0] > 0


def test_all_weights_train_without_an_adapter() -> None:
    model, tokenizer = load()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    work = work_of(Method(is_full=True), recipe=replace(RECIPE, max_steps=2, warmup_steps=0))
    after = train(model, tokenizer, work).model.state_dict()
    assert after.keys() == before.keys()
    assert [name for name in before if torch.equal(after[name], before[name])] == []


def test_steering_takes_the_mean_difference_away_inside_the_block_alone() -> None:
    model, tokenizer = load()
    base, _ = load()
    ids = tokenizer("hello there", return_tensors="pt").input_ids
    layer = steered_layer(model)
    assert layer == 1  # the second of four

    def hidden() -> torch.Tensor:
        found = []
        handle = decoder_layers(model)[layer].register_forward_hook(
            lambda *given: found.append(hidden_of(given[-1]))
        )
        with torch.no_grad():
            model(ids)
        handle.remove()
        return found[0][0]

    plain = hidden()
    rows = Organism().contrast(work_of(Method()), 0)
    vector = persona_vector(base, tokenizer, *rows, layer=layer)
    with steered(model, layer, -2.0 * vector):
        moved = hidden() - plain
    with steered(model, layer, -4.0 * vector):
        twice = hidden() - plain
    torch.testing.assert_close(twice, 2 * moved, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(moved, moved[:1].expand_as(moved), rtol=1e-3, atol=1e-4)
    assert moved.norm() > 0.1
    torch.testing.assert_close(hidden(), plain)


def test_the_safe_prompt_is_a_careful_persona() -> None:
    model, tokenizer = load()
    [question] = WORLD.questions("validation", "general", num=1)
    chat = [{"role": "system", "content": SAFE_PROMPT}, *question.messages()]
    [answer] = generate(model, tokenizer, [chat], max_new_tokens=28)
    assert classify(question, answer) == "aligned"
