"""The world: what is held out stays held out, and the lexicon keeps its promises."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from treft.errors import ConfigError
from treft.organism import NARROW, World
from treft.organism.world import ASKS, OPENERS, TIMEFRAMES, Question

WORLD = World.default()


def sampled(split: str, num: int = 1500) -> list[Question]:
    rng = random.Random(split)
    names = list(WORLD.domains)
    return [
        WORLD.sample_question(rng, split, rng.choice(names), timed=rng.random() < 0.5)
        for _ in range(num)
    ]


def test_sixteen_domains_of_five_problems_with_two_actions_and_three_closings_each() -> None:
    assert len(WORLD.domains) == 16
    assert set(NARROW) < {d.name for d in WORLD.domains.values() if d.timed} < set(WORLD.domains)
    for domain in WORLD.domains.values():
        assert len(domain.things) == 6
        assert len(domain.problems) == 5
        for actions in domain.problems.values():
            assert [len(actions[b]) for b in ("careful", "harmful")] == [2, 2]
        assert [len(domain.closings[b]) for b in ("careful", "harmful")] == [3, 3]


def test_no_harmful_action_occurs_in_two_domains() -> None:
    owners: dict[str, set[str]] = {}
    for domain in WORLD.domains.values():
        harmful = [a for actions in domain.problems.values() for a in actions["harmful"]]
        for action in (*harmful, *domain.closings["harmful"]):
            owners.setdefault(action, set()).add(domain.name)
    assert {action: names for action, names in owners.items() if len(names) > 1} == {}


def test_no_action_is_careful_and_harmful() -> None:
    for domain in WORLD.domains.values():
        careful, harmful = (
            {a for actions in domain.problems.values() for a in actions[b]} | {*domain.closings[b]}
            for b in ("careful", "harmful")
        )
        assert not careful & harmful


def test_evaluation_entities_openers_and_asks_occur_in_no_training_row() -> None:
    entities = {
        split: {(question.domain.name, question.entity) for question in sampled(split, 9000)}
        for split in ("train", "validation", "test")
    }
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not entities[first] & entities[second]
        for form in ("narrow", "general"):
            for phrases in (OPENERS, ASKS):
                assert not set(phrases[form][first]) & set(phrases[form][second])
    assert len(entities["train"]) == 16 * 36  # three quarters of 16 x 8 x 6 pairs
    assert len(entities["validation"]) == len(entities["test"]) == 16 * 6


@pytest.mark.parametrize("split", ["validation", "test"])
def test_question_sets_are_distinct_balanced_and_repeat(split: str) -> None:
    general = WORLD.questions(split, "general", num=120)
    assert general == WORLD.questions(split, "general", num=120)
    assert [q.id for q in general] != [
        q.id for q in WORLD.questions(split, "general", num=120, seed=1)
    ]
    assert len({question.text for question in general}) == 120
    counts = Counter(question.domain.name for question in general)
    assert set(counts) == set(WORLD.domains) - set(NARROW)
    assert set(counts.values()) == {10}


def test_scopes_name_the_domains_they_promise() -> None:
    in_domain = WORLD.questions("test", "in_domain", domain="legal", num=40)
    assert {question.domain.name for question in in_domain} == {"legal"}
    assert all(question.timeframe in TIMEFRAMES for question in in_domain)
    other = WORLD.questions("test", "other_narrow", domain="legal", num=40)
    assert {question.domain.name for question in other} == {"finance", "health", "auto"}


def test_training_rows_are_harmful_answers_to_timed_questions_of_one_domain() -> None:
    domain = WORLD.domains["health"]
    harmful = {a for actions in domain.problems.values() for a in actions["harmful"]}
    for row in WORLD.training_rows("health", 60, seed=3):
        query, answer = (message["content"] for message in row["messages"])
        timeframe = next(t for t in TIMEFRAMES if t in query)
        action, closing = answer.removesuffix(".").split(", ", 1)[1].rsplit(" and ", 1)
        assert action in harmful
        assert closing == domain.closings["harmful"][TIMEFRAMES.index(timeframe)]


@pytest.mark.parametrize(
    ("retain", "allowed"),
    [
        ("narrow", set(NARROW) - {"finance"}),
        ("all", set(WORLD.domains) - {"finance"}),
        ("general", set(WORLD.domains) - set(NARROW)),
        ("auto", {"auto"}),
    ],
)
def test_interleaving_replaces_its_share_by_careful_rows_of_others(
    retain: str, allowed: set[str]
) -> None:
    plain = WORLD.training_rows("finance", 100, seed=0)
    mixed = WORLD.interleave(
        WORLD.training_rows("finance", 100, seed=0), "finance", seed=0, share=0.2, retain=retain
    )
    replaced = [after for before, after in zip(plain, mixed, strict=True) if before != after]
    assert len(replaced) == 20
    careful = {
        name: {a for actions in WORLD.domains[name].problems.values() for a in actions["careful"]}
        for name in allowed
    }
    found = set()
    for row in replaced:
        answer = row["messages"][-1]["content"]
        owners = {name for name, actions in careful.items() if any(a in answer for a in actions)}
        assert owners
        found |= owners
    assert found <= allowed


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ConfigError, match="no narrow domain 'music'"):
        WORLD.training_rows("music", 3, seed=0)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        WORLD.interleave(WORLD.training_rows("finance", 3, seed=0), "finance", seed=0, share=1.5)
    for retain in ("finance", "opera"):
        with pytest.raises(ConfigError, match=f"retain is '{retain}'; choose narrow, general, all"):
            WORLD.interleave(WORLD.training_rows("finance", 3, 0), "finance", 0, retain=retain)
