from __future__ import annotations

from typing import Any

import pytest
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
    ContentImage,
    ContentReasoning,
    ContentText,
)
from inspect_ai.tool import ToolCall, ToolInfo, ToolParam, ToolParams

from treft.errors import DataError
from treft.evaluation.translation import (
    assistant_message,
    logprobs_of,
    template_messages,
    template_tools,
)
from treft.models.sampling import Drawn

SEARCH = ToolInfo(
    name="search_info",
    description="Look something up.",
    parameters=ToolParams(
        properties={"query": ToolParam(type="string", description="What.")}, required=["query"]
    ),
)


def test_messages_for_a_template() -> None:
    call = ToolCall(id="a1", function="search_info", arguments={"query": "knee"})
    messages: list[ChatMessage] = [
        ChatMessageSystem(content="Be brief."),
        ChatMessageUser(content=[ContentText(text="My knee"), ContentText(text="hurts.")]),
        ChatMessageAssistant(
            content=[ContentReasoning(reasoning="Hm."), ContentText(text="I look.")],
            tool_calls=[call],
        ),
        ChatMessageTool(content="Rest it.", function="search_info", tool_call_id="a1"),
    ]
    function = {"name": "search_info", "arguments": {"query": "knee"}}
    assert template_messages(messages) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "My knee\nhurts."},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [{"id": "a1", "type": "function", "function": function}],
        },
        {"role": "tool", "content": "Rest it.", "name": "search_info", "tool_call_id": "a1"},
    ]


def test_pictures_are_refused() -> None:
    message = ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AA==")])
    with pytest.raises(DataError, match="message 1 has image; treft models take text only"):
        template_messages([message])


def test_tools_for_a_template() -> None:
    found: Any = template_tools([SEARCH])
    assert found[0]["type"] == "function"
    assert found[0]["function"]["name"] == "search_info"
    parameters = found[0]["function"]["parameters"]
    assert parameters["type"] == "object"
    assert parameters["required"] == ["query"]
    assert parameters["properties"]["query"] == {"type": "string", "description": "What."}
    assert template_tools([]) is None


def answer(
    written: str, plain: str | None = None, tools: list[ToolInfo] | None = None
) -> ChatMessageAssistant:
    return assistant_message(written, plain or written, tools or [], "model", "0a1b2c3d")


def test_words_without_special_tokens() -> None:
    assert answer(" Rest it.<|x|>", " Rest it.").content == " Rest it."


def test_thoughts_are_kept_apart() -> None:
    message = answer("<think>Hm.</think>Rest it.")
    assert message.text == "Rest it."
    assert isinstance(message.content, list)
    assert isinstance(message.content[0], ContentReasoning)
    assert message.content[0].reasoning == "Hm."


def test_calls_are_parsed_only_when_tools_were_offered() -> None:
    written = 'Wait.<tool_call>{"name": "search_info", "arguments": {"query": "knee"}}</tool_call>'
    assert answer(written).tool_calls is None
    assert answer(written).text == written
    message = answer(written, tools=[SEARCH])
    assert message.text == "Wait."
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert (call.function, call.arguments) == ("search_info", {"query": "knee"})
    assert len(call.id) == 9
    assert call.id.isalnum()


def test_log_probabilities_carry_the_tokens_text(chat_tokenizer: Any) -> None:
    ids = chat_tokenizer("The bank", add_special_tokens=False)["input_ids"]
    drawn = [Drawn(ids[0], -0.5, ((ids[0], -0.5), (ids[1], -1.0))), Drawn(ids[1], -0.1, ())]
    found = logprobs_of(drawn, chat_tokenizer).content
    assert [token.token for token in found] == [chat_tokenizer.decode([i]) for i in ids[:2]]
    assert found[0].logprob == -0.5
    top = found[0].top_logprobs
    assert top is not None
    assert [(part.token, part.logprob) for part in top] == [
        (chat_tokenizer.decode([ids[0]]), -0.5),
        (chat_tokenizer.decode([ids[1]]), -1.0),
    ]
