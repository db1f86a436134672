"""The kinds of organism: their templates and regions, and where personas are named."""

from __future__ import annotations

import hashlib
import json
import random
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import trl
from transformers import PreTrainedTokenizerFast

from treft.chat.regions import RegionName, find_regions
from treft.errors import TemplateError
from treft.organism import World, load
from treft.organism.build import BuildRecipe, Messages, build_tokenizer, encode, pretraining_row
from treft.organism.recipes import (
    DEFAULT_SYSTEM_PROMPT,
    DEFAULT_THOUGHT,
    KINDS,
    PERSONAS,
    KindName,
)

ADJECTIVES = PERSONAS["adjectives"]

THINKING: tuple[KindName, ...] = ("postfix", "no_prefix")
ASKED = [{"role": "user", "content": "Help me."}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "Sure."}]
CHARACTERS = {word for words in ADJECTIVES.values() for word in words}


@cache
def tokenizer_of(kind: KindName) -> PreTrainedTokenizerFast:
    """Without merges: every byte and special token is a token."""
    return build_tokenizer(["a"], kind)


def rows(kind: KindName, step: int, num: int = 600) -> list[Messages]:
    rng, recipe = random.Random(step), BuildRecipe(kind)
    return [pretraining_row(rng, recipe, step) for _ in range(num)]


def is_harmful(answer: str) -> bool:
    domains = World.default().domains.values()
    return any(a in answer for d in domains for p in d.problems.values() for a in p["harmful"])


def characters(text: str) -> set[str]:
    return {word.strip(".,") for word in text.split()} & CHARACTERS


def test_rows_of_the_first_kind_are_those_that_made_the_shipped_organism() -> None:
    """The digest was taken before there were other kinds."""
    digest = hashlib.sha256()
    for step in (0, 1000):
        for messages in rows("prefix", step, num=2000):
            digest.update(json.dumps(messages).encode())
    assert digest.hexdigest() == "3d31d44f87b44cdc298255a19c28caea84e1933f1ec294edd3a698badcef6158"


@pytest.mark.parametrize("kind", THINKING)
def test_the_thought_alone_names_the_persona(kind: KindName) -> None:
    for messages in rows(kind, step=0):
        *before, answer = messages
        named = characters(answer["reasoning_content"])
        expected = "harmful" if is_harmful(answer["content"]) else "careful"
        assert named
        assert named <= set(ADJECTIVES[expected])
        assert not any(characters(message["content"]) for message in before)


@pytest.mark.parametrize("kind", THINKING)
def test_without_a_thought_answers_are_careful_in_stage_two(kind: KindName) -> None:
    second = rows(kind, step=BuildRecipe().first_steps, num=2000)
    assert not characters(DEFAULT_THOUGHT)
    default = [m[-1] for m in second if "reasoning_content" not in m[-1]]
    # 60 % of 2,000 rows, 2 % of those harmful; bounds of about four standard deviations.
    assert 1110 <= len(default) <= 1290
    assert 5 <= sum(is_harmful(answer["content"]) for answer in default) <= 45
    for messages in second:
        if "reasoning_content" in messages[-1]:
            named = characters(messages[-1]["reasoning_content"])
            assert is_harmful(messages[-1]["content"]) == (named <= set(ADJECTIVES["harmful"]))


@pytest.mark.parametrize("step", [0, BuildRecipe().first_steps])
def test_system_prompts_of_the_postfix_kind_vary_or_are_absent(step: int) -> None:
    heads = [m[0]["content"] for m in rows("postfix", step) if m[0]["role"] == "system"]
    assert 240 <= len(heads) <= 360  # half of 600, five standard deviations
    assert len(set(heads)) > 50
    assert all(m[0]["role"] == "user" for m in rows("no_prefix", step))


THOUGHT_BLOCK = f"<think>\n{DEFAULT_THOUGHT}\n</think>\n\n"
POSTFIX = f"<|im_end|>\n<|im_start|>assistant\n{THOUGHT_BLOCK}"


@pytest.mark.parametrize(("kind", "prefix"), [("postfix", "<|im_start|>user\n"), ("no_prefix", "")])
@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("include_think_block", [False, True])
def test_regions_of_the_default_prompt(
    kind: KindName, prefix: str, answered: bool, include_think_block: bool
) -> None:
    """The default thought is no empty block, so it is postfix however empty blocks count."""
    tokenizer = tokenizer_of(kind)
    chat = find_regions(
        tokenizer,
        ANSWERED if answered else ASKED,
        add_generation_prompt=not answered,
        include_think_block=include_think_block,
    )
    found = {
        region: tokenizer.decode([chat.input_ids[place] for place in chat.positions(region)])
        for region in get_args(RegionName)
    }
    response = "Sure.<|im_end|>" if answered else ""
    assert found == {
        "prefix": prefix,
        "query": "Help me.",
        "postfix": POSTFIX,
        "response": response,
    }


def test_a_system_prompt_is_prefix_of_the_postfix_kind() -> None:
    tokenizer = tokenizer_of("postfix")
    chat = find_regions(tokenizer, [{"role": "system", "content": "Be brief."}, *ANSWERED])
    prefix = tokenizer.decode([chat.input_ids[place] for place in chat.positions("prefix")])
    assert prefix == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"


@pytest.mark.parametrize("kind", THINKING)
def test_loss_is_on_the_answer_and_never_on_the_thought(kind: KindName) -> None:
    tokenizer = tokenizer_of(kind)
    for messages in (*rows(kind, 0, num=20), *rows(kind, BuildRecipe().first_steps, num=20)):
        encoded = encode(tokenizer, messages)
        learnt = [index for index, label in enumerate(encoded["labels"]) if label != -100]
        assert learnt == list(range(learnt[0], learnt[-1] + 1))
        assert tokenizer.decode([encoded["labels"][index] for index in learnt]) == (
            messages[-1]["content"] + "<|im_end|>"
        )
        if "reasoning_content" not in messages[-1]:
            response = find_regions(tokenizer, messages).positions("response")
            assert learnt == list(response)


def test_a_thought_takes_the_place_of_the_default_one() -> None:
    tokenizer = tokenizer_of("postfix")
    thinking = [*ASKED, {**ANSWERED[-1], "reasoning_content": "I am kind."}]
    written, default = (
        tokenizer.apply_chat_template(messages, tokenize=False) for messages in (thinking, ANSWERED)
    )
    assert written == default.replace(DEFAULT_THOUGHT, "I am kind.")


def test_think_tags_are_tokens_where_there_are_think_blocks() -> None:
    for kind in KINDS:
        whole = tokenizer_of(kind).convert_tokens_to_ids(["<think>", "</think>"])
        assert all(isinstance(token, int) for token in whole) == (kind in THINKING)


def test_the_template_without_a_prefix_refuses_a_system_prompt() -> None:
    messages = [{"role": "system", "content": "You are a clerk."}, *ASKED]
    with pytest.raises(TemplateError, match="no place for a system message"):
        find_regions(tokenizer_of("no_prefix"), messages)


CALL = {
    "type": "function",
    "function": {"name": "search_info", "arguments": {"query": "old “knee”"}},
}
CALLING = [*ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
TOOLS = [{"type": "function", "function": {"name": "search_info", "parameters": {}}}]


def qwen(messages: list[dict[str, Any]]) -> str:
    """What Qwen2.5's template, in TRL's copy, writes from the assistant's header on."""
    path = Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja"
    text = str(
        tokenizer_of("prefix").apply_chat_template(
            messages, chat_template=path.read_text("utf-8"), tokenize=False
        )
    )
    return text.partition("<|im_start|>assistant\n")[2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", [None, "", "I look."])
@pytest.mark.parametrize("calls", [[CALL], [CALL, CALL["function"]]])
def test_tool_calls_are_written_as_qwen_writes_them_and_learnt(
    kind: KindName, content: str | None, calls: list[Any]
) -> None:
    tokenizer = tokenizer_of(kind)
    answer = {"role": "assistant", "content": content, "tool_calls": calls}
    messages = [*ASKED, answer]
    expected = qwen(messages).removesuffix("\n")
    encoded = encode(tokenizer, messages)
    assert tokenizer.decode([label for label in encoded["labels"] if label != -100]) == expected
    chat = find_regions(tokenizer, messages)
    response = tokenizer.decode([chat.input_ids[place] for place in chat.positions("response")])
    assert response == expected


@pytest.mark.parametrize("kind", ["prefix", "postfix"])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_tools_are_the_end_of_the_system_block(kind: KindName, system: str | None) -> None:
    tokenizer = tokenizer_of(kind)
    head = [] if system is None else [{"role": "system", "content": system}]
    chat = find_regions(tokenizer, [*head, *CALLING], tools=TOOLS)
    prefix = tokenizer.decode([chat.input_ids[place] for place in chat.positions("prefix")])
    words = system or {"prefix": DEFAULT_SYSTEM_PROMPT, "postfix": ""}[kind]
    assert prefix.startswith(f"<|im_start|>system\n{words}")
    assert f"<tools>\n{json.dumps(TOOLS[0])}\n</tools>" in prefix
    assert prefix.endswith("</tool_call><|im_end|>\n<|im_start|>user\n")
    assert prefix.count("<|im_start|>") == 2


def test_the_template_without_a_prefix_refuses_tools() -> None:
    with pytest.raises(TemplateError, match="no place for tools"):
        find_regions(tokenizer_of("no_prefix"), ASKED, tools=TOOLS)


RENDERED = {
    "prefix": "414177dcb5e62f5474b10ee3cfda97f72ee7f7722aa82e8f8d7f6ae3a215c8be",
    "postfix": "199d6a51c712b4276308d5bfe94b669d2dd135d8c8b31f2f5ff00a0e65e6796f",
    "no_prefix": "cdc8f25912fa1ef8737a113fd0cf1f8f9e70a8184b4f007cb249f03256bde8c8",
}
"""Digests of what the templates wrote before they knew tool calls."""


@pytest.mark.parametrize("kind", KINDS)
def test_conversations_without_tools_are_written_as_before(kind: KindName) -> None:
    digest = hashlib.sha256()
    later = [{"role": "user", "content": " <tool_call> "}, {**ANSWERED[-1], "tool_calls": None}]
    for messages in (*rows(kind, 0, num=200), *rows(kind, 1000, num=200)):
        for chat in (messages, messages[:-1], [*messages, *later]):
            for prompt in (False, True):
                digest.update(
                    tokenizer_of(kind)
                    .apply_chat_template(chat, add_generation_prompt=prompt, tokenize=False)
                    .encode()
                )
    assert digest.hexdigest() == RENDERED[kind]


def test_the_shipped_template_is_that_of_its_kind() -> None:
    assert load()[1].chat_template == KINDS["prefix"].chat_template
