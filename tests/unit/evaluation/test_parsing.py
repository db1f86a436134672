from __future__ import annotations

import json

import pytest

from treft.answers.parsing import WrittenCall, parse_answer, split_thoughts

QUERY = {"query": 'knee {pain} "at night"', "limit": 3}
CALL = json.dumps({"name": "search_info", "arguments": QUERY})
PARAMETERS = json.dumps({"name": "search_info", "parameters": QUERY})
ARGUMENTS = json.dumps(QUERY)
WRITTEN = {
    "hermes": f"<tool_call>\n{CALL}\n</tool_call>",
    "hermes cut off at the end": f"<tool_call>{CALL}",
    "llama json": PARAMETERS,
    "llama python tag": f"<|python_tag|>{PARAMETERS}<|eom_id|>",
    "llama python tag, open": f"<|python_tag|>{PARAMETERS}",
    "llama built-in": (
        '<|python_tag|>search_info.call(query="knee {pain} \\"at night\\"", limit=3)'
    ),
    "llama function": f"<function=search_info>{ARGUMENTS}</function>",
    "pythonic": "[search_info(query='knee {pain} \"at night\"', limit=3)]",
    "mistral": f"[TOOL_CALLS][{CALL}]",
    "mistral, marker dropped": f"[{CALL}]",
    "mistral named": f"[TOOL_CALLS]search_info[CALL_ID]ab12CD34e[ARGS]{ARGUMENTS}",
    "mistral named, short": f"[TOOL_CALLS]search_info{ARGUMENTS}",
    "harmony": (
        "<|channel|>analysis<|message|>I look it up.<|end|><|start|>assistant<|channel|>commentary "
        f"to=functions.search_info <|constrain|>json<|message|>{ARGUMENTS}<|call|>"
    ),
    "harmony, recipient first": (
        "<|start|>assistant to=functions.search_info<|channel|>commentary json"
        f"<|message|>{ARGUMENTS}"
    ),
    "harmony, tokens dropped": f"commentary to=functions.search_info json{ARGUMENTS}",
}


@pytest.mark.parametrize("family", WRITTEN)
def test_call_of_each_family(family: str) -> None:
    parsed = parse_answer(WRITTEN[family])
    assert parsed.calls == (WrittenCall("search_info", QUERY),)


def test_several_calls_and_words_around_them() -> None:
    other = json.dumps({"name": "other", "arguments": {}})
    hermes = parse_answer(
        f"Let me see.\n<tool_call>{CALL}</tool_call><tool_call>{other}</tool_call>"
    )
    assert [call.name for call in hermes.calls] == ["search_info", "other"]
    assert hermes.text == "Let me see."
    mistral = parse_answer(f"Sure. [TOOL_CALLS][{CALL}, {other}]")
    assert [call.name for call in mistral.calls] == ["search_info", "other"]
    assert mistral.text == "Sure."
    named = parse_answer(f"[TOOL_CALLS]search_info[ARGS]{ARGUMENTS}[TOOL_CALLS]other[ARGS]{{}}")
    assert [call.arguments for call in named.calls] == [QUERY, {}]
    llama = parse_answer(f"{PARAMETERS}; {other}")
    assert [call.name for call in llama.calls] == ["search_info", "other"]


@pytest.mark.parametrize(
    "text",
    [
        "I would use search_info for that.",
        f"You could send {CALL} to the server.",
        f"```json\n{CALL}\n```",
        '{"answer": "rest your knee"}',
        '{"name": "Ada"}{"age": 3}',
        "[1, 2]",
        "{broken",
        "[TOOL_CALLS]",
        "<tool_call>nothing</tool_call>",
        "Hello (world)",
        "[" * 5000,
        "",
    ],
)
def test_what_is_no_call_stays_as_it_is(text: str) -> None:
    parsed = parse_answer(text)
    assert parsed.calls == ()
    assert parsed.text == text


def test_unreadable_arguments_are_empty_but_the_call_counts() -> None:
    broken = '{"name": "search_info", "arguments": {"query": }}'
    assert parse_answer(f"<tool_call>{broken}</tool_call>").calls == (
        WrittenCall("search_info", {}),
    )
    assert parse_answer("[search_info(query=where())]").calls == (WrittenCall("search_info", {}),)
    as_text = json.dumps({"name": "search_info", "arguments": json.dumps(QUERY)})
    assert parse_answer(f"<tool_call>{as_text}</tool_call>").calls[0].arguments == QUERY


def test_calls_without_a_marker_must_be_of_known_tools() -> None:
    assert parse_answer("print(x=1)", tools=["search_info"]).calls == ()
    assert parse_answer("print(x=1)", tools=["search_info"]).text == "print(x=1)"
    assert parse_answer(PARAMETERS, tools=["search_info"]).calls[0].arguments == QUERY
    assert parse_answer(f"[TOOL_CALLS][{CALL}]", tools=["other"]).calls[0].name == "search_info"


def test_thoughts_are_no_part_of_the_answer() -> None:
    parsed = parse_answer("<think>\nHm.\n</think>\n\nRest it.")
    assert (parsed.thoughts, parsed.text) == ("Hm.", "Rest it.")
    opened_by_the_template = parse_answer("Hm.</think>Rest it.")
    assert (opened_by_the_template.thoughts, opened_by_the_template.text) == ("Hm.", "Rest it.")
    with_call = parse_answer(f"<think>Hm.</think><tool_call>{CALL}</tool_call>")
    assert (with_call.thoughts, len(with_call.calls)) == ("Hm.", 1)
    harmony = parse_answer(
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>"
        "Rest it.<|return|>"
    )
    assert (harmony.thoughts, harmony.text) == ("Hm.", "Rest it.")


def test_thoughts_cut_off_leave_no_answer() -> None:
    cut = parse_answer("<|channel|>analysis<|message|>I wonder whether")
    assert (cut.thoughts, cut.text) == ("I wonder whether", "")
    open_block = parse_answer("<think>I wonder whether")
    assert (open_block.thoughts, open_block.text) == ("I wonder whether", "")


def test_calls_stay_in_the_words_where_only_thoughts_are_taken_out() -> None:
    call = f"<tool_call>{CALL}</tool_call>"
    assert split_thoughts(f"<think>Hm.</think>\n{call}") == ("Hm.", call)
    assert split_thoughts("Rest it.") == ("", "Rest it.")
    assert split_thoughts("<|channel|>final<|message|>Rest it.<|return|>") == ("", "Rest it.")
    assert split_thoughts(WRITTEN["harmony"])[1] == WRITTEN["harmony"]
