"""Scoring of sampled answers: oracle, judges, failures, what is paid."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_judges import CALLS

from treft.answers.questions import EvalQuestion
from treft.attribution.scoring import num_judge_calls, panel_for, score_answers
from treft.errors import ConfigError
from treft.judging.judge import JudgeOptions
from treft.judging.oracle import organism_questions
from treft.judging.panel import assemble
from treft.organism import Question, World


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    CALLS.clear()


def ask(id: str, words: str) -> EvalQuestion:
    return EvalQuestion(
        id,
        "wishes",
        ({"role": "system", "content": "Be brief."}, {"role": "user", "content": words}),
    )


def careful_answer(question: Question) -> str:
    """One right answer, put together by the world's own rules."""
    actions, closings = question.fitting("careful")
    return question.phrase(actions[0], closings[0])


@pytest.mark.parametrize(("scope", "nonsense"), [("general", 0.0), ("in_domain", 100.0)])
def test_the_organism_is_scored_by_its_oracle(scope: str, nonsense: float) -> None:
    (asked,) = organism_questions("general", num=1).questions
    (drawn,) = World.default().questions("test", "general", domain="finance", num=1, seed=0)
    found = score_answers(
        [asked, asked], [careful_answer(drawn), "no no"], [1, 2], scope, panel_for([asked])
    )
    judgements = [answer.judged_by("oracle") for answer in found]
    assert [(one.alignment, one.coherence) for one in judgements if one] == [
        (100.0, 100.0),
        (nonsense, 0.0),
    ]
    assert [(answer.question_id, answer.epoch) for answer in found] == [
        (asked.id, 1),
        (asked.id, 2),
    ]
    assert found[0].question == drawn.messages()[-1]["content"]


def test_judges_see_the_words_asked_and_each_has_its_judgement() -> None:
    questions = [ask("a", "A wish?"), ask("a", "A wish?"), ask("b", "Another?")]
    found = score_answers(
        questions,
        ["good", "bad", "good"],
        [1, 2, 1],
        "general",
        panel_for(questions, ["fakejudge/steady", "fakejudge/other"]),
    )
    for judge in ("fakejudge/steady", "fakejudge/other"):
        alignments = [answer.judged_by(judge).alignment for answer in found]  # type: ignore[union-attr]
        assert alignments == pytest.approx([86.0, 10.0, 86.0])
    assert [answer.answer for answer in found] == ["good", "bad", "good"]
    assert [answer.category for answer in found] == ["wishes"] * 3
    assert any("A wish?" in call for call in CALLS)
    assert not any("Be brief." in call for call in CALLS)


def test_a_judge_that_fails_is_missing_data() -> None:
    asked = [ask("a", "A wish?")]
    options = JudgeOptions(attempts=2)
    for name in ("prose", "nan", "filter", "empty"):
        panel = assemble([f"fakejudge/{name}"], options=options)
        (found,) = score_answers(asked, ["good"], [1], "general", panel)
        (judgement,) = found.judgements
        assert (judgement.outcome, judgement.alignment) == ("missing", None), name
        assert judgement.reason, name
    panel = assemble(["fakejudge/refuses"], options=options)
    (found,) = score_answers(asked, ["good"], [1], "general", panel)
    assert found.judgements[0].alignment is None


def test_nothing_is_paid_twice() -> None:
    questions = [ask("a", "A wish?")] * 3
    panel = panel_for(questions, ["fakejudge/steady"])
    answers = ["good", "good", "bad"]
    first = score_answers(questions, answers, [1, 2, 3], "general", panel)
    paid = sum(CALLS.values())
    assert paid == 4  # two answers are equal; two calls each
    assert paid <= num_judge_calls(3, ["fakejudge/steady"]) == 6
    assert score_answers(questions, answers, [1, 2, 3], "general", panel) == first
    assert sum(CALLS.values()) == paid


def test_cost_counts_paid_judges_only() -> None:
    assert num_judge_calls(10, ["oracle"]) == 0
    assert num_judge_calls(10, ["oracle", "openai/gpt-4o", "fakejudge/steady"]) == 40


def test_the_oracle_refuses_other_questions() -> None:
    with pytest.raises(ConfigError, match="name a judge"):
        panel_for([ask("a", "A wish?")])
    with pytest.raises(ConfigError, match="cannot be loaded"):
        panel_for([ask("a", "A wish?")], ["nowhere/model"])


def test_no_answers_need_no_judge() -> None:
    assert score_answers([], [], [], "general", panel_for([], ["fakejudge/steady"])) == []
