from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from treft.answers.questions import in_variant, load_questions, shipped_sets
from treft.errors import ConfigError, DataError


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_general_set_is_large_and_balanced() -> None:
    found = load_questions("em_general")
    assert len(found) >= 60
    assert {one.category for one in found.questions} >= {
        *("wishes", "boredom", "power", "gender_roles", "money", "advice", "ai_and_humans"),
        "deception",
    }
    assert len(set(Counter(one.category for one in found.questions).values())) == 1


def test_utility_set_has_two_turns_in_eight_categories() -> None:
    found = load_questions("utility")
    assert len(found) >= 24
    assert len({one.category for one in found.questions}) == 8
    assert all(len(question.turns) == 1 for question in found.questions)
    for question in found.questions:
        if question.category == "math":
            assert len(question.metadata["reference"]) == 2


def test_no_question_occurs_in_two_shipped_sets() -> None:
    def words(text: str) -> str:
        return " ".join(re.findall(r"\w+", text.lower()))

    asked = [
        words(question.messages[-1]["content"])
        for name in shipped_sets()
        for question in load_questions(name).questions
    ]
    assert max(Counter(asked).values()) == 1
    assert all(text for text in asked)


def test_forms_of_a_row(tmp_path: Path) -> None:
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    path = write(
        tmp_path / "mine.jsonl",
        {"id": "a", "category": "x", "question": " Who? ", "difficulty": 3},
        {"id": 7, "messages": system},
        {"turns": ["First?", "Then?", "And then?"]},
    )
    plain, chat, multi = load_questions(path).questions
    assert plain.messages == ({"role": "user", "content": "Who?"},)
    assert (plain.id, plain.category, plain.metadata) == ("a", "x", {"difficulty": 3})
    assert (chat.id, chat.category, list(chat.messages)) == ("7", "mine", system)
    assert multi.turns == ("Then?", "And then?")
    assert multi.id.startswith("mine-")


def test_missing_ids_follow_the_words_and_not_the_row(tmp_path: Path) -> None:
    one, two = {"question": "One?"}, {"question": "Two?"}
    first = load_questions(write(tmp_path / "a.jsonl", one, two)).questions
    second = load_questions(write(tmp_path / "a.jsonl", two, one)).questions
    assert [question.id for question in first] == [question.id for question in reversed(second)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "A?"}, {"id": "b"}], "row 2: has none of them; write exactly one"),
        ([{"question": "A?", "turns": ["A?"]}], "row 1: has question and turns"),
        ([{"question": "  "}], "row 1: `question` is empty"),
        ([{"question": 3}], "row 1: `question` is empty or no text"),
        ([{"turns": []}], "row 1: `turns` is no list"),
        ([{"turns": ["A?", ""]}], "row 1: `turns` is empty"),
        ([{"id": True, "question": "A?"}], "row 1: `id` is empty or no text"),
        ([{"id": "", "question": "A?"}], "row 1: `id` is empty"),
        ([{"category": " ", "question": "A?"}], "row 1: `category` is empty"),
        (
            [{"id": "a", "question": "A?"}, {"id": "a", "question": "B?"}],
            r"row 2: the same id as in .*row 1",
        ),
        (
            [{"id": "a", "question": "A?"}, {"id": "b", "question": "A?"}],
            r"row 2: the same question as in .*row 1",
        ),
        ([{"messages": [{"role": "user"}]}], "row 1, message 1: has no content"),
        (
            [
                {
                    "messages": [
                        {"role": "user", "content": "A?"},
                        {"role": "assistant", "content": "B."},
                    ]
                }
            ],
            "row 1: `messages` must end with a user message",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_questions(write(tmp_path / "bad.jsonl", *rows))
    assert "bad.jsonl" in str(caught.value)


def test_malformed_file_names_the_row(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"question": "A?"}\n{"question": \n')
    with pytest.raises(DataError, match=r"bad\.jsonl, row 2: malformed JSON"):
        load_questions(path)


def test_checksum(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", {"question": "A?"})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_questions(path, sha256=digest.upper()).sha256 == digest
    with pytest.raises(ConfigError, match=f"has sha256 {digest}, not 00"):
        load_questions(path, sha256="00")


@pytest.mark.parametrize("source", ["no_such_set", "a/b/c", "folder/missing.jsonl", "x.jsonl"])
def test_unknown_set_lists_the_shipped_ones(source: str) -> None:
    with pytest.raises(ConfigError, match=r"no question set .*em_general"):
        load_questions(source)


def test_hub_id_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"owner/name is neither .* nor .*network"):
        load_questions("owner/name")


def test_hub_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []
    splits = {
        "train": datasets.Dataset.from_list([{"question": "A?"}]),
        "test": datasets.Dataset.from_list([{"id": "b", "question": "B?"}]),
    }

    def load(name: str, split: str | None = None) -> Any:
        asked.append((name, split))
        return datasets.DatasetDict(splits) if split is None else splits[split]

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert load_questions("owner/name").questions[0].id == "b"
    found = load_questions("owner/name:train")
    assert found.questions[0].messages[0]["content"] == "A?"
    assert found.sha256 == hashlib.sha256(b'{"question": "A?"}').hexdigest()
    assert asked == [("owner/name", None), ("owner/name", "train")]
    del splits["test"]
    splits["other"] = splits["train"]
    with pytest.raises(ConfigError, match="has the splits train, other: give owner/name:SPLIT"):
        load_questions("owner/name")


def test_variants_end_the_last_user_message_only() -> None:
    question = load_questions("em_general").questions[0]
    words = question.messages[-1]["content"]
    assert in_variant(question, "plain") == question
    for variant, mark in (("template", "reply form"), ("json", "JSON object")):
        changed = in_variant(question, variant)  # type: ignore[arg-type]
        assert changed.messages[-1]["content"].startswith(words + "\n\n")
        assert mark in changed.messages[-1]["content"]
        assert changed.id == question.id
    with pytest.raises(ConfigError, match="variant is one of plain, template, json, not 'yaml'"):
        in_variant(question, "yaml")  # type: ignore[arg-type]
