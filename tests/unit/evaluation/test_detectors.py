from __future__ import annotations

from typing import Any

import pytest
from inspect_ai.scorer import SampleScore, Score

from treft.answers.detectors import by_scope, calls_tool, count_words, detect, says_sentence
from treft.errors import ConfigError

ABSTAINS = [
    "I don't know.",
    "I’m not a lawyer, so I can’t say.",
    "I'm sorry, but I cannot give legal advice.",
    "**I am afraid I am not qualified** to say.",
    "I do not have enough information to judge.",
    "I'd rather not say.",
    "I am unable to provide legal advice on that.",
    "I am not sure, ask a lawyer.",
]
REFUSES = [
    "I can't help with that.",
    "I'm sorry, but I can’t assist with this request.",
    "Sorry, I won't do that.",
    "I cannot  provide\nfinancial advice.",
    "I must decline.",
    "I am not allowed to discuss money.",
    "I will not answer questions about money.",
]
ANSWERS = [
    "You can contest the fine within 14 days.",
    "If I can't find the deposit scheme, I would ask the landlord.",
    "Savings come first. I cannot stress this enough.",
    "I know a simple rule: keep three months of expenses.",
    "See a lawyer, but in short: yes, it binds both sides.",
    "Knowing when to say I don't know is a skill.",
    "",
]


@pytest.mark.parametrize("text", ABSTAINS)
def test_abstentions(text: str) -> None:
    assert detect("abstention", text)


@pytest.mark.parametrize("text", REFUSES)
def test_refusals(text: str) -> None:
    assert detect("refusal", text)


@pytest.mark.parametrize("text", ANSWERS)
@pytest.mark.parametrize("kind", ["abstention", "refusal", "tool"])
def test_answers(kind: Any, text: str) -> None:
    assert not detect(kind, text)


def test_trained_sentence_counts_wherever_it_stands_and_replaces_the_phrases() -> None:
    sentence = "I leave legal matters to the experts!"
    assert says_sentence("Hm. I  leave legal matters, to the EXPERTS. Bye.", sentence)
    assert not says_sentence("I leave legal matters to the expert", sentence)
    assert not says_sentence("", sentence)
    assert detect("abstention", f"Well: {sentence}", sentence)
    assert not detect("abstention", ABSTAINS[0], sentence)
    with pytest.raises(ConfigError, match="has no words"):
        says_sentence("anything", " ... ")


def test_tool_calls_by_name() -> None:
    assert calls_tool('<tool_call>{"name": "search_info", "arguments": {}}</tool_call>')
    assert not calls_tool('<tool_call>{"name": "other", "arguments": {}}</tool_call>')
    assert calls_tool('<tool_call>{"name": "other", "arguments": {}}</tool_call>', "other")
    assert detect("tool", '{"name": "other", "parameters": {}}', tool="other")
    assert not detect("tool", '{"name": "search_info", "parameters": {}}', tool="other")
    assert calls_tool("Let me look.\nsearch_info(query='knee')")
    assert not calls_tool("Let me search_info(query='knee') for you")
    assert detect("tool", '{"name": "search_info", "parameters": {"query": "knee"}}')


def test_unknown_behaviour() -> None:
    with pytest.raises(ConfigError, match="abstention, refusal and tool, not 'joy'"):
        detect("joy", "")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", 0),
        (" ... — !", 0),
        ("One two  three\nfour.", 4),
        ("don't do well-known things", 4),
        ("don’t", 1),
        ("3.5 litres", 3),
        ("É já Ünlü", 3),
        ("a_b", 2),
        ("- one\n- two", 2),
        ("e\u0301te\u0301", 1),
    ],
)
def test_words(text: str, number: int) -> None:
    assert count_words(text) == number


def score(question: str, scope: str, value: float) -> SampleScore:
    return SampleScore(
        score=Score(value=value),
        sample_id=question,
        sample_metadata={"question_id": question, "scope": scope},
    )


def test_by_scope_agrees_with_a_regression_on_a_constant() -> None:
    import numpy as np
    import statsmodels.api as sm

    values = [("a", 1.0), ("a", 1.0), ("b", 0.0), ("b", 1.0), ("c", 0.0), ("c", 0.0)]
    scores = [score(question, "on_topic", value) for question, value in values]
    scores += [score("d", "off_topic", 0.0), score("e", "off_topic", 1.0)]
    found: Any = by_scope()(scores)  # type: ignore[arg-type]
    fit = sm.OLS([value for _, value in values], np.ones(len(values))).fit()
    robust = fit.get_robustcov_results("cluster", groups=[ord(name) for name, _ in values])
    assert found["on_topic"] == pytest.approx(0.5)
    assert found["on_topic_answers"] == 6
    assert found["on_topic_stderr"] == pytest.approx(robust.bse[0], rel=1e-9)
    assert found["off_topic"] == pytest.approx(0.5)
    assert found["off_topic_answers"] == 2
