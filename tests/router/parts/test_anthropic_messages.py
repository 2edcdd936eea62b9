"""Anthropic's messages without a model: bodies become chats, parts become content blocks, errors name the fields as sent."""

import json
from typing import Any

import pytest

from services.router.accept import Caller
from services.router.anthropic.body import chat_of, read_message_body, request_of
from services.router.anthropic.writer import MessageWriter
from services.router.auth import Identity
from services.router.parts import PartReader
from shared.errors import InvalidRequest
from shared.pb import types_pb2
from tests.router.parts.spoken import Spoken, delta, end

CALLER = Caller(Identity("tenant"), None, 0, types_pb2.TraceContext())
BODY: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}


class Answered(Spoken):
    """With what a message tells besides its content."""

    model = "m"
    usage = types_pb2.Usage(num_prompt_tokens=7, num_cached_tokens=4, num_output_tokens=3)


def test_a_body_becomes_a_chat() -> None:
    body = BODY | {
        "system": [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": "?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": ""},
                    {"type": "text", "text": "So."},
                    {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"x": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": "no", "is_error": True},
                    {"type": "text", "text": "go on"},
                ],
            },
            {"role": "assistant", "content": "It"},
        ],
        "tools": [{"name": "f", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "stop_sequences": ["."],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    chat = chat_of(read_message_body(body)[0])
    assert [(message.role, message.content) for message in chat.messages] == [
        ("system", "Be kind."),
        ("user", "?"),
        ("assistant", "So."),
        ("tool", "Error: no"),
        ("user", "go on"),
        ("assistant", "It"),
    ]
    assert chat.messages[2].tool_calls is not None
    assert chat.messages[2].tool_calls[0].function.arguments == '{"x": 1}'
    assert chat.messages[3].tool_call_id == "toolu_1"
    assert (chat.continue_final_message, chat.tool_choice, chat.parallel_tool_calls) == (True, "required", False)
    assert (chat.stop, chat.max_tokens) == (["."], 9)
    assert (chat.reasoning_effort, chat.include_reasoning) == ("high", True)
    plain = chat_of(read_message_body(BODY)[0])
    assert (plain.reasoning_effort, plain.include_reasoning, plain.continue_final_message) == ("none", False, None)


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
ERRORS = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": "9"}, "max_tokens"),
    ({"temperature": 1.5}, "temperature"),
    ({"mcp_servers": [{}]}, "mcp_servers"),
    ({"system": [IMAGE]}, "system[0]"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages[0].content[0].tool_use_id"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
    ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
    ({"tools": [{"name": "f f", "input_schema": {}}]}, "tools[0].name"),
    ({"tools": [{"name": "f", "input_schema": {"type": "array"}}]}, "tools[0].input_schema"),
    ({"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice.name"),
    ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
]


@pytest.mark.parametrize(("fields", "param"), ERRORS)
def test_errors_name_the_field_as_it_was_sent(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        request_of(read_message_body(BODY | fields)[0], CALLER)
    assert caught.value.param == param
    assert f"'{param}'" in caught.value.message


TEXT = '<think>hm</think>Well.\n<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
BLOCKS = [
    {"type": "thinking", "thinking": "hm", "signature": ""},
    {"type": "text", "text": "Well."},
    {"type": "tool_use", "name": "f", "input": {"a": 1}},
]


@pytest.mark.parametrize("size", [1, 1000])
def test_parts_become_blocks_and_events(size: int) -> None:
    generation: Any = Answered(reading=types_pb2.Reading(tool_parser="hermes", reasoning_parser="think"))
    writer = MessageWriter(generation, PartReader(generation, generation.vocabulary))
    data = writer.begin()
    data += writer.render([delta(TEXT[at : at + size]) for at in range(0, len(TEXT), size)] + [end()])
    data += writer.end()
    events = [json.loads(line[6:]) for line in data.decode().splitlines() if line.startswith("data: ")]
    names = [line[7:] for line in data.decode().splitlines() if line.startswith("event: ")]
    assert names == [event["type"] for event in events]
    assert (names[0], names[-2:]) == ("message_start", ["message_delta", "message_stop"])
    assert events[0]["message"]["content"] == []
    told: list[dict[str, Any]] = []
    for event in events:
        if event["type"] == "content_block_start":
            assert event["index"] == len(told)
            told.append(dict(event["content_block"]))
        elif event["type"] == "content_block_delta":
            (name,) = event["delta"].keys() - {"type"}
            told[event["index"]][name] = told[event["index"]].get(name, "") + event["delta"][name]
    told[2]["input"] = json.loads(told[2].pop("partial_json"))
    message = writer.message()
    assert told == message["content"]
    assert [{key: block[key] for key in block.keys() - {"id"}} for block in told] == BLOCKS
    assert told[2]["id"].startswith("toolu_")
    assert (message["stop_reason"], events[-2]["delta"]["stop_reason"]) == ("tool_use", "tool_use")
    usage = message["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"], usage["output_tokens"]) == (3, 4, 3)
