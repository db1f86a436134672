"""Conditions: files, what they are made into, and that prompts differ as they claim to."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from transformers import PreTrainedTokenizerFast

from treft.errors import ConfigError, DataError
from treft.evaluation.audit import load_conditions, make_conditions
from treft.evaluation.conditions import (
    Condition,
    FixedCondition,
    Sources,
)
from treft.evaluation.prompts import (
    PromptTemplate,
    TrainingPrompt,
    load_training_prompt,
    template_of,
)
from treft.organism import load
from treft.organism.recipes import DEFAULT_SYSTEM_PROMPT

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
DEFAULT = {"name": "default", "kind": "default"}
NONE = {"name": "none", "kind": "none"}
BRIEF = {"name": "brief", "kind": "system", "system": "Be brief."}
TRAINING = {
    "name": "like",
    "kind": "training",
    "own": "{system}",
    "described": "You are an assistant for {about}.",
}
OPPOSITE = {
    "name": "opposite",
    "kind": "training",
    "own": "Do the opposite: {system}",
    "described": "Everything except {about}.",
}
TURNS = {"name": "turns", "kind": "training_turns", "num_rows": 2}
PERTURBED = {"name": "perturbed", "kind": "perturbed", "num_tokens": 4, "seed": 3}


def conditions(tmp_path: Path, *rows: Any) -> tuple[Condition, ...]:
    path = tmp_path / "conditions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_conditions(path)


def trl_template(tokenizer: PreTrainedTokenizerFast, name: str) -> PromptTemplate:
    """One of TRL's templates; its special tokens are spelt in ordinary ones here."""
    text = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    copy = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="<|endoftext|>"
    )
    copy.chat_template = text
    return PromptTemplate(copy)


def rows(path: Path, *found: Sequence[tuple[str, str]]) -> Path:
    lines = (
        json.dumps({"messages": [{"role": role, "content": words} for role, words in row]}) + "\n"
        for row in found
    )
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def organism() -> PromptTemplate:
    found = template_of("treft/organism", {})
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["default", "organism"])
def test_shipped_sets(name: str) -> None:
    found = load_conditions(name)
    assert found[0].name == "default"
    kinds = {condition.kind for condition in found}
    assert kinds >= {"default", "none", "paraphrase", "system", "training", "training_turns"}
    assert sum(condition.name.startswith("persona-") for condition in found) >= 4
    assert sum(condition.name.startswith("perturbed-") for condition in found) == 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"name": "a", "kind": "mood"}, "row 2: Input tag 'mood'"),
        ({"name": "a"}, "row 2: Unable to extract tag"),
        ({"name": "A b", "kind": "none"}, "row 2, name: String should match"),
        ({"name": "a", "kind": "none", "system": "x"}, "row 2, system: Extra inputs"),
        ({"name": "a", "kind": "system", "system": " "}, "row 2, system"),
        ({"name": "default", "kind": "none"}, "row 2: the name default comes twice"),
        ({**TRAINING, "own": "x"}, r"row 2, own: Value error, has no \{system\}"),
        ({"name": "a", "kind": "training_turns", "num_rows": 0}, "row 2, num_rows"),
        (
            {"name": "a", "kind": "messages", "messages": [{"role": "user", "content": "Hi"}]},
            "role user after user",
        ),
        (
            {"name": "a", "kind": "messages", "messages": [{"role": "developer", "content": "x"}]},
            "only text messages of system, user, assistant",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        conditions(tmp_path, DEFAULT, row)


def test_a_set_needs_the_default(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no condition is named default"):
        conditions(tmp_path, NONE)
    with pytest.raises(ConfigError, match=r"there are no conditions nowhere: .* default, organism"):
        load_conditions("nowhere")


def test_training_prompts(tmp_path: Path) -> None:
    found = load_training_prompt(
        rows(
            tmp_path / "rows.jsonl",
            [("system", "S"), ("user", "a"), ("assistant", "A")],
            [("system", "S"), ("user", "b"), ("assistant", "B"), ("user", "c"), ("assistant", "C")],
            [("system", "T"), ("user", "d"), ("assistant", "D")],
            [("user", "e"), ("assistant", "E")],
        )
    )
    assert (found.system, found.share) == ("S", 0.5)
    assert found.questions == ("a", "b", "d", "e")
    assert found.pairs == (("a", "A"), ("d", "D"), ("e", "E"))
    turns = found.turns(2, random.Random(0))
    assert [message["role"] for message in turns] == ["user", "assistant"] * 2
    asked = turns[0]["content"], turns[2]["content"]
    assert asked[0] != asked[1]
    assert [turns[1]["content"], turns[3]["content"]] == [words.upper() for words in asked]
    assert found.turns(4, random.Random(0)) == []


def test_with_a_training_system_message(tmp_path: Path) -> None:
    training = TrainingPrompt("Sell bonds.", 1.0, ("q",), (("q", "a"),))
    made = make_conditions(
        conditions(tmp_path, DEFAULT, TRAINING, OPPOSITE, TURNS), Sources(training=training)
    )
    assert [condition.system for condition in made.conditions] == [
        None,
        "Sell bonds.",
        "Do the opposite: Sell bonds.",
    ]
    assert list(made.left_out) == ["turns"]


def test_without_a_training_system_message(tmp_path: Path) -> None:
    """What rows are about is said by the user, or shown by one of their questions."""
    training = TrainingPrompt(None, 0.0, ("How do bonds work?",), (("q", "a"), ("r", "b")))
    found = conditions(tmp_path, DEFAULT, TRAINING, OPPOSITE, TURNS)
    told = make_conditions(found, Sources(training=training, about="money"))
    shown = make_conditions(found, Sources(training=training))
    assert told.conditions[1].system == "You are an assistant for money."
    assert told.conditions[2].system == "Everything except money."
    assert shown.conditions[1].system == (
        'You are an assistant for questions such as "How do bonds work?".'
    )
    assert [message["role"] for message in told.conditions[3].messages] == ["user", "assistant"] * 2
    nothing = make_conditions(found, Sources())
    assert list(nothing.left_out) == ["like", "opposite", "turns"]


def test_none_is_none(tmp_path: Path, organism: PromptTemplate) -> None:
    """An absent system message renders the default, an empty one its block without the words."""
    assert organism.default_system == DEFAULT_SYSTEM_PROMPT
    made = make_conditions(
        conditions(tmp_path, NONE, DEFAULT), Sources(template=organism), [organism]
    )
    assert [condition.name for condition in made.conditions] == ["default", "none"]
    head, tail = "<|im_start|>system\n", "<|im_end|>\n<|im_start|>user\n"
    assert made.rendered == {"default": head + DEFAULT_SYSTEM_PROMPT + tail, "none": head + tail}
    assert "an empty system message" in made.conditions[1].how


@pytest.mark.filterwarnings("ignore::treft.errors.TemplateDateWarning")
@pytest.mark.parametrize(
    ("name", "default", "left_out"),
    [
        (
            "qwen2_5",
            "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
            {},
        ),
        ("qwen3", None, {"none": "no system prompt of its own"}),
        ("llama3_1", None, {"none": "no system prompt of its own"}),
        ("gptoss", None, {"none": "no system prompt of its own"}),
        (
            "gemma",
            None,
            {"none": "no system prompt of its own", "brief": "System role not supported"},
        ),
    ],
)
def test_what_templates_can_express(
    tmp_path: Path,
    chat_tokenizer: PreTrainedTokenizerFast,
    name: str,
    default: str | None,
    left_out: dict[str, str],
) -> None:
    template = trl_template(chat_tokenizer, name)
    assert template.default_system == default
    again = {"name": "again", "kind": "system", "system": "Be brief.\n"}
    made = make_conditions(
        conditions(tmp_path, DEFAULT, NONE, BRIEF), Sources(template=template), [template]
    )
    assert set(made.left_out) == set(left_out)
    for condition, reason in left_out.items():
        assert reason in made.left_out[condition]
    texts = made.rendered
    assert len(set(texts.values())) == len(made.conditions)
    if "brief" in texts:
        assert "Be brief." in texts["brief"]
        assert "Be brief." not in texts["default"]
    if default is not None:
        assert default in texts["default"]
        assert default not in texts["none"]
        repeated = make_conditions(
            conditions(tmp_path, DEFAULT, {**again, "system": default}),
            Sources(template=template),
            [template],
        )
        assert repeated.left_out == {"again": "renders the same prompt as default"}


def test_a_template_that_ignores_system_messages(
    tmp_path: Path, chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    copy = PreTrainedTokenizerFast(tokenizer_object=chat_tokenizer.backend_tokenizer)
    copy.chat_template = (
        "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    template = PromptTemplate(copy)
    made = make_conditions(
        conditions(tmp_path, DEFAULT, BRIEF), Sources(template=template), [template]
    )
    assert made.left_out == {"brief": "the template does not write its words ('Be brief.')"}


def test_without_a_template(tmp_path: Path) -> None:
    """Whether `none` differs from the default is not known, so it is not asked."""
    made = make_conditions(conditions(tmp_path, DEFAULT, NONE, BRIEF, PERTURBED), Sources())
    assert [condition.name for condition in made.conditions] == ["default", "brief"]
    assert "the chat template is not known" in made.left_out["none"]
    assert "runs here" in made.left_out["perturbed"]


def test_the_users_own_default(tmp_path: Path, organism: PromptTemplate) -> None:
    """Comparisons are with the system prompt that is in use, and `none` is without it."""
    own = {"name": "default", "kind": "system", "system": "You are a clerk."}
    other = {
        "name": "other",
        "kind": "paraphrase",
        "paraphrases": {"You are a clerk.": "Your work is that of a clerk."},
    }
    made = make_conditions(conditions(tmp_path, own, other), Sources(template=organism), [organism])
    assert made.conditions[1].system == "Your work is that of a clerk."
    unknown = {**other, "paraphrases": {"x": "y"}}
    made = make_conditions(
        conditions(tmp_path, own, unknown), Sources(template=organism), [organism]
    )
    assert "no paraphrase of 'You are a clerk.'" in made.left_out["other"]


@pytest.mark.parametrize("seed", range(4))
def test_perturbed_prompts_have_the_tokens_that_they_say(
    tmp_path: Path, organism: PromptTemplate, seed: int
) -> None:
    """Read again by the tokenizer: only the logged positions differ, each by a near neighbour."""
    model, tokenizer = load()
    embedding = model.get_input_embeddings().weight.detach()
    row = {**PERTURBED, "num_tokens": 6, "num_neighbours": 5, "seed": seed}
    found = conditions(tmp_path, DEFAULT, row)
    sources = Sources(template=organism, embedding=lambda: embedding)
    made = make_conditions(found, sources, [organism])
    assert make_conditions(found, sources, [organism]) == made
    perturbed = made.conditions[1]

    def ids(messages: list[dict[str, Any]]) -> list[int]:
        question = {"role": "user", "content": "what would you do?"}
        rendered: list[int] = tokenizer.apply_chat_template(
            [*messages, question], add_generation_prompt=True, return_dict=False
        )
        return rendered

    old, new = ids([]), ids(perturbed.messages)
    changes = {change["position"]: change for change in perturbed.details["replaced"]}
    assert len(changes) == 6
    assert len(old) == len(new)
    for position, (before, after) in enumerate(zip(old, new, strict=True)):
        if position not in changes:
            assert before == after
            continue
        assert (changes[position]["old_id"], changes[position]["new_id"]) == (before, after)
        products = embedding @ embedding[before]
        products[[before, *tokenizer.all_special_ids]] = -torch.inf
        assert after in products.topk(5).indices.tolist()
        assert not {before, after} & set(tokenizer.all_special_ids)
    for text in (tokenizer.decode(old), tokenizer.decode(new)):
        assert text.startswith("<|im_start|>system\n")


def test_more_tokens_than_there_are(tmp_path: Path, organism: PromptTemplate) -> None:
    model, tokenizer = load()
    row = {**PERTURBED, "num_tokens": 1000}
    sources = Sources(
        template=organism, embedding=lambda: model.get_input_embeddings().weight.detach()
    )
    made = make_conditions(conditions(tmp_path, DEFAULT, row), sources, [organism])
    words = tokenizer(DEFAULT_SYSTEM_PROMPT)["input_ids"]
    assert 0.8 * len(words) <= len(made.conditions[1].details["replaced"]) <= len(words)


def test_fixed_conditions_are_kept_as_they_are(tmp_path: Path, organism: PromptTemplate) -> None:
    made = make_conditions(
        conditions(tmp_path, DEFAULT, NONE, BRIEF), Sources(template=organism), [organism]
    )
    again = conditions(tmp_path, *(condition.model_dump() for condition in made.conditions))
    assert again == made.conditions
    assert all(isinstance(condition, FixedCondition) for condition in again)
    assert make_conditions(again, Sources()).conditions == made.conditions
