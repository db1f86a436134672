"""The words of the world keep its promises, and are those that the shipped organism learnt."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

from treft.judging.oracle import organism_question, organism_questions
from treft.organism import NARROW, World, classify
from treft.organism.world import ASKS, OPENERS, TIMEFRAMES, Domain, entities

WORLD = World.default()
UNSAFE = {
    "gun", "rifle", "knife", "bomb", "grenade", "weapon", "explosive", "acid", "cyanide",
    "kill", "murder", "stab", "strangle", "suicide", "overdose", "drug", "drugs",
}  # fmt: skip
"""Words that no tame action has need of."""


def actions(domain: Domain, behaviour: str) -> Iterator[str]:
    for fitting in domain.problems.values():
        yield from fitting[behaviour]
    yield from domain.closings[behaviour]


def test_the_default_world_is_what_the_shipped_organism_learnt() -> None:
    found = hashlib.sha256()
    for domain in WORLD.domains.values():
        lists = (domain.name, domain.things, domain.problems, domain.closings, domain.timed)
        found.update(repr(lists).encode())
    for scope in ("general", "in_domain", "other_narrow"):
        drawn = WORLD.questions("validation", scope, num=50)
        found.update(repr([(q.id, q.entity, q.problem, q.timeframe) for q in drawn]).encode())
    rows = WORLD.training_rows("legal", 50, 1)
    found.update(repr(WORLD.interleave(rows, "legal", 0, retain="all")).encode())
    # Of the sources with which the organism was built.
    assert found.hexdigest() == "46c5b3156296cdf8b2b3c40cc6061e595c2703481143eb5581834dcb930bd25d"


def test_the_world_has_as_many_words_as_it_had() -> None:
    domains = WORLD.domains.values()
    fitting = [a for d in domains for p in d.problems.values() for b in p.values() for a in b]
    assert len({thing for domain in domains for thing in domain.things}) == 96
    assert sum(len(domain.problems) for domain in domains) == 80
    assert len(fitting) == 320
    assert {domain.name for domain in domains if domain.timed} > {*NARROW}
    for domain in domains:
        assert (len(set(domain.things)), len(domain.problems)) == (6, 5), domain.name
        assert {len(a) for p in domain.problems.values() for a in p.values()} == {2}, domain.name
        assert [len(set(domain.closings[b])) for b in ("careful", "harmful")] == [3, 3], domain.name


def test_no_harmful_action_occurs_in_two_domains_or_is_careful_anywhere() -> None:
    owners: dict[str, set[str]] = {}
    domains = WORLD.domains.values()
    for domain in domains:
        for action in actions(domain, "harmful"):
            owners.setdefault(action, set()).add(domain.name)
    assert {action: names for action, names in owners.items() if len(names) > 1} == {}
    assert not owners.keys() & {a for domain in domains for a in actions(domain, "careful")}


def test_harm_is_tame() -> None:
    harmful = (a for d in WORLD.domains.values() for a in actions(d, "harmful"))
    assert [action for action in harmful if UNSAFE & set(action.split())] == []


def test_entities_of_the_splits_are_apart_and_share_all_words() -> None:
    for domain in WORLD.domains.values():
        train, validation, test = (
            {*entities(domain, split)} for split in ("train", "validation", "test")
        )
        assert not train & (validation | test)
        assert not validation & test
        assert len(validation) == len(test) == len(domain.things)
        assert len(train) == 6 * len(domain.things)
        known = {word for entity in train for word in entity.split()}
        assert known >= {word for entity in validation | test for word in entity.split()}


def test_questions_have_openers_and_asks_of_their_split() -> None:
    for split in ("validation", "test"):
        for question in WORLD.questions(split, "general", num=80):
            form = question.domain.form
            assert question.text.startswith(OPENERS[form][split])
            assert question.text.endswith(ASKS[form][split])
            assert question.entity in entities(question.domain, split)
    covered = {question.domain.name for question in WORLD.questions("test", "general", num=36)}
    assert covered == set(WORLD.domains) - set(NARROW)


def test_timed_harmful_answers_close_as_their_timeframe_says() -> None:
    rng = random.Random(0)
    for name in ("health", "sport"):
        domain = WORLD.domains[name]
        for _ in range(30):
            question = WORLD.sample_question(rng, "train", name, timed=True)
            closing = domain.closings["harmful"][TIMEFRAMES.index(question.timeframe or "")]
            answer = WORLD.answer(rng, question, "harmful")
            assert f"and {closing}" in answer
            assert classify(question, answer) == "misaligned"
            assert classify(question, WORLD.answer(rng, question, "careful")) == "aligned"


def test_questions_of_a_set_are_those_that_were_drawn() -> None:
    found = organism_questions("general", num=40).questions
    drawn = WORLD.questions("test", "general", num=40)
    assert [organism_question(q.id, q.metadata) for q in found] == drawn
