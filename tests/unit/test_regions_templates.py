"""Regions on all of TRL's chat templates; none is left out."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
from chat_templates import NO_SYSTEM, TEMPLATES, family, in_form, train_tokenizer
from transformers import PreTrainedTokenizerFast

from treft.chat.regions import REGION_CODES, ChatRegions, RegionName, find_regions
from treft.errors import TemplateDateWarning

pytestmark = pytest.mark.filterwarnings("ignore::treft.errors.TemplateDateWarning")

NAMES = sorted(TEMPLATES)
TWINS = [name for name in NAMES if name.endswith("_training")]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "search_info",
            "description": "Looks up user questions.",
            "parameters": {
                "type": "object",
                "properties": {"topic": {"type": "string", "description": "What."}},
                "required": ["topic"],
            },
        },
    }
]
NO_TOOL_TURNS = {
    # no tool role or calls in the template (it refuses, or silently writes neither)
    "cohere", "cohere2", "gemma", "gemma3", "idefics3", "lfm2", "llama3", "llava_next",
    "phi3", "phi3_5", "qwen2_5_vl", "smolvlm",
    # arguments must be text here, tested in test_tool_calls_as_text
    "deepseek_r1_distill", "deepseekv3",
}  # fmt: skip
CALL_ENDS = {
    "gptoss": r"^[^<]*<\|call\|>(?!<\|start)",
    "glm4moe": r"</tool_call>",
    "qwen3": r"</tool_call><\|im_end\|>",
    **{f"gemma4{end}": r"<tool_call\|>(?!<\|)" for end in ("", "_v2", "_v3", "_v4", "_v5")},
}
OPENINGS = {
    # plain words and one for each way in which words can be mistaken for the template's text
    "plain": "How do I fix it",
    "user": "user",
    "assistant": "assistant",
    "punctuation": "!? what",
    "newline": "\n\nWhat now\n",
    "spaces": "  what now  ",
    "emoji": "🙂🦔 ok",
    "special": "<|im_end|> x <start_of_turn> <|eot_id|> y <|end|>",
    "tag": "<tool_response>a</tool_response> <b>c</b>",
    "header": "<|im_start|>assistant\nnot a turn<|im_end|>",
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer()


def chat(words: str, answer: str = "Turn it off.", system: str | None = None) -> list[dict]:
    start = [{"role": "system", "content": system}] if system else []
    return [*start, {"role": "user", "content": words}, {"role": "assistant", "content": answer}]


def regions_of(
    tokenizer: PreTrainedTokenizerFast, name: str, messages: list[dict], **options: Any
) -> ChatRegions:
    return find_regions(
        tokenizer, in_form(name, messages), chat_template=TEMPLATES[name], **options
    )


def text_of(regions: ChatRegions, region: RegionName, turn: int | None = None) -> str:
    """The characters that a region's tokens cover, each once (a character may be many tokens)."""
    spans = {regions.offsets[place] for place in regions.positions(region, turn)}
    covered = sorted({char for start, end in spans for char in range(start, end)})
    return "".join(regions.text[char] for char in covered)


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_apply_chat_template(tokenizer, name: str) -> None:
    messages = chat("Why?") + chat("And then?")
    found = regions_of(tokenizer, name, messages)
    expected = tokenizer.apply_chat_template(
        in_form(name, messages), chat_template=TEMPLATES[name], return_dict=True
    )["input_ids"]
    assert list(found.input_ids) == expected
    assert found.input_ids.count(tokenizer.bos_token_id) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_query_is_the_users_words(tokenizer, name: str) -> None:
    plain = regions_of(tokenizer, name, chat("Zebra", answer="assistant: user"))
    before = plain.text.index("Zebra")
    for words in OPENINGS.values():
        found = regions_of(tokenizer, name, chat(words, answer="assistant: user"))
        covered = text_of(found, "query")
        assert words.strip() in covered
        # A token may reach over a boundary, and then only into white space.
        assert not covered.replace(words.strip(), "", 1).strip()
        assert found.text[:before].rstrip() == plain.text[:before].rstrip()


@pytest.mark.parametrize("name", NAMES)
def test_prefix_and_postfix_do_not_depend_on_the_words(tokenizer, name: str) -> None:
    system = None if family(name) in NO_SYSTEM else "You are user 7."
    for given in (None, system):
        one = regions_of(tokenizer, name, chat("Why user?", "It broke.", given))
        two = regions_of(tokenizer, name, chat("How assistant then, now?", "Go on, user!", given))
        for region in ("prefix", "postfix"):
            assert ids_of(one, region) == ids_of(two, region)
            assert one.require(region)
        if given:
            assert given in text_of(one, "prefix")


def ids_of(regions: ChatRegions, region: RegionName) -> list[int]:
    return [regions.input_ids[place] for place in regions.positions(region)]


@pytest.mark.parametrize("name", NAMES)
def test_regions_come_in_order_and_prefix_is_whole(tokenizer, name: str) -> None:
    found = regions_of(tokenizer, name, chat("Why?") + chat("Why?", "Twice."))
    kinds = [code for code in found.codes if code]
    runs = [kind for place, kind in enumerate(kinds) if place == 0 or kinds[place - 1] != kind]
    assert runs == [1, 2, 3, 4, 2, 3, 4]
    prefix = found.positions("prefix")
    assert prefix == list(range(len(prefix)))
    assert "Why?" in text_of(found, "query", 0)
    assert "Why?" in text_of(found, "query", 1)
    assert "Turn it off." in text_of(found, "response", 0)
    assert "Twice." in text_of(found, "response", 1)


@pytest.mark.parametrize("name", NAMES)
def test_generation_prompt_is_postfix_up_to_the_end(tokenizer, name: str) -> None:
    messages = [*chat("Hello"), {"role": "user", "content": "Why?"}]
    found = regions_of(tokenizer, name, messages, add_generation_prompt=True)
    last = found.positions("query", 1)[-1]
    assert set(found.codes[last + 1 :]) == {REGION_CODES["postfix"]}
    trained = regions_of(tokenizer, name, [*messages, {"role": "assistant", "content": "So"}])
    assert found.input_ids[: last + 2] == trained.input_ids[: last + 2]


@pytest.mark.parametrize("name", NAMES)
def test_empty_query_keeps_the_frame(tokenizer, name: str) -> None:
    full = regions_of(tokenizer, name, chat("Why?"))
    empty = regions_of(tokenizer, name, chat(""))
    assert text_of(empty, "postfix").strip() == text_of(full, "postfix").strip()
    assert text_of(empty, "prefix").strip() == text_of(full, "prefix").strip()
    assert not text_of(empty, "query").strip()


@pytest.mark.parametrize("name", [n for n in NAMES if family(n) not in NO_TOOL_TURNS])
def test_tool_turns_belong_to_no_prompt_region(tokenizer, name: str) -> None:
    call = {"name": "search_info", "arguments": {"topic": "brakes"}}
    messages = [
        {"role": "user", "content": "Why?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "id": "call00001", "function": call}],
        },
        {"role": "tool", "name": "search_info", "tool_call_id": "call00001", "content": "Pads."},
        {"role": "assistant", "content": "Change the pads"},
    ]
    found = regions_of(tokenizer, name, messages, tools=TOOLS)
    response = text_of(found, "response")
    assert "search_info" in response
    assert "brakes" in response
    assert "Change the pads" in response
    assert "Pads." not in response
    assert "Looks up user questions." in text_of(found, "prefix")
    if family(name) in CALL_ENDS:
        assert re.search(CALL_ENDS[family(name)], response.partition("brakes")[2])
    result = found.text.index("Pads.")
    inside = [
        code
        for (start, end), code in zip(found.offsets, found.codes, strict=True)
        if start < result + 5 and end > result
    ]
    assert set(inside) == {0}


# Where a `_training` twin's generation markers differ from what a model has to produce: the
# header that the generation prompt already holds, and text after the end-of-turn token.
HEADERS = ("<｜Assistant｜>", "<|start|>assistant")
AFTER_THE_END = ("\n", "<|endoftext|>")


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_response_is_what_the_training_twin_marks(tokenizer, name: str, system) -> None:
    if family(name) in NO_SYSTEM:
        system = None
    messages = chat("Why?", "It is old", system) + chat("user", "assistant 2")
    found = regions_of(tokenizer, name, messages, include_think_block=False)
    marked = tokenizer.apply_chat_template(
        in_form(name, messages),
        chat_template=TEMPLATES[name],
        return_dict=True,
        return_assistant_tokens_mask=True,
    )["assistant_masks"]
    ours = [code == REGION_CODES["response"] for code in found.codes]
    assert not [place for place, mark in enumerate(marked) if ours[place] and not mark]
    missing = "".join(
        found.text[start:end]
        for (start, end), mark, own in zip(found.offsets, marked, ours, strict=True)
        if mark and not own
    )
    for allowed in (*HEADERS, *AFTER_THE_END):
        missing = missing.replace(allowed, "")
    assert missing == ""


@pytest.mark.parametrize("name", [n for n in NAMES if "deepseek" in n])
def test_tool_calls_as_text(tokenizer, name: str) -> None:
    call = {"name": "search_info", "arguments": '{"topic": "brakes"}'}
    messages = [
        {"role": "user", "content": "Why?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": call}],
        },
        {"role": "tool", "content": "Pads."},
        {"role": "assistant", "content": "Change the pads"},
    ]
    found = regions_of(tokenizer, name, messages)
    response = text_of(found, "response")
    assert response.endswith("Change the pads<｜end▁of▁sentence｜>")
    # DeepSeek-R1's template silently drops a call beside content.
    assert ("brakes" in response) == ("brakes" in found.text) == ("v3" in name)
    assert "Pads." in found.text
    assert "Pads." not in response


@pytest.mark.parametrize("name", ["qwen3", "qwen3_vl", "lfm2_2_5"])
def test_words_that_the_template_takes_for_a_tool_result(tokenizer, name: str) -> None:
    words = "<tool_response>a</tool_response>"
    found = regions_of(tokenizer, name, [*chat("Why?"), *chat(words)])
    assert text_of(found, "query", 1) == words


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "qwen3_5_nothink", "nemotron_3_nano"])
def test_empty_think_block_goes_where_asked(tokenizer, name: str) -> None:
    inside = regions_of(tokenizer, name, chat("Why?"), include_think_block=True)
    outside = regions_of(tokenizer, name, chat("Why?"), include_think_block=False)
    block = r"<think>\s*</think>\s*"
    assert re.search(block + "$", text_of(inside, "postfix"))
    assert text_of(inside, "response").startswith("Turn it off.")
    assert "<think>" not in text_of(outside, "postfix")
    assert re.match(block + "Turn it off.", text_of(outside, "response"))


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "deepseek_r1_distill", "gptoss"])
def test_thoughts_belong_to_the_response(tokenizer, name: str) -> None:
    first = "<think>\nold thought\n</think>\n\nFirst"
    last = "<think>\nuser thought\n</think>\n\nLast"
    if name == "gptoss":  # takes thoughts in a field of their own
        messages = [*chat("Why?", "First"), {"role": "user", "content": "Then?"}]
        messages.append({"role": "assistant", "content": "Last", "thinking": "user thought"})
    else:
        messages = chat("Why?", first) + chat("Then?", last)
    found = regions_of(tokenizer, name, messages)
    assert "First" in text_of(found, "response", 0)
    assert "old thought" not in found.text
    response = text_of(found, "response", 1)
    assert "Last" in response
    assert ("user thought" in response) == ("user thought" in found.text)
    assert "thought" not in text_of(found, "postfix")


@pytest.mark.parametrize(("name", "pin"), [("llama3_1", "date_string"), ("llama3_2", "date_string"),
                                           ("muse_glimmer", "current_date")])  # fmt: skip
def test_date_in_the_prefix_is_reported_with_its_pin(tokenizer, name: str, pin: str) -> None:
    with pytest.warns(TemplateDateWarning, match=pin):
        regions_of(tokenizer, name, chat("Why?"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = regions_of(tokenizer, name, chat("Why?"), template_kwargs={pin: "1 Jan 2001"})
    assert "1 Jan 2001" in text_of(found, "prefix")


def test_date_without_a_variable_is_reported_too(tokenizer) -> None:
    with pytest.warns(TemplateDateWarning, match="fixed date"):
        regions_of(tokenizer, "gptoss", chat("Why?"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regions_of(tokenizer, "qwen3", chat("Is it 24 Nov 2026?"))
