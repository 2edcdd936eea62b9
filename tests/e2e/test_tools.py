"""Tools and the smallest real model: where a call must come, it comes, and it fits the schema; over every door, whatever dies."""

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import anthropic
import grpc
import httpx
import openai
import pytest

from shared.pb import router_pb2, router_pb2_grpc, tokenizer_pb2, types_pb2
from tests.stack import Stack

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Rome"]},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer"},
    },
    "required": ["city", "unit"],
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather of a city", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "get_time"}},
]
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}
LETTER = {"type": "object", "properties": {"text": {"type": "string", "minLength": 120, "maxLength": 160}}, "required": ["text"]}
WRITE: list[Any] = [{"type": "function", "function": {"name": "write_letter", "parameters": LETTER}}]
MESSAGES: list[Any] = [{"role": "user", "content": "What is the weather in Rome, in celsius?"}]


@pytest.fixture
def api(smollm2: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{smollm2.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def claude(smollm2: Stack) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=smollm2.url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def check_weather(arguments: str) -> None:
    given = json.loads(arguments)
    assert given["city"] in ("Paris", "Rome")
    assert given["unit"] in ("celsius", "fahrenheit")
    assert set(given) <= {"city", "unit", "days"}


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_call_that_must_come_comes_streamed_and_whole(api: openai.OpenAI, choice: Any) -> None:
    asked: dict[str, Any] = {"messages": MESSAGES, "tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False, "seed": 5}
    whole = api.chat.completions.create(model="default", max_tokens=100, **asked).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert whole.message.content is None
    (call,) = whole.message.tool_calls or ()
    assert call.type == "function"
    assert call.id.startswith("call_")
    if choice is NAMED or call.function.name == "get_weather":
        assert call.function.name == "get_weather"
        check_weather(call.function.arguments)
    else:
        assert (call.function.name, call.function.arguments) == ("get_time", "{}")
    with api.chat.completions.stream(model="default", max_tokens=100, **asked) as stream:
        chunks = [event.chunk for event in stream if event.type == "chunk"]
        told = stream.get_final_completion().choices[0]
    assert told.finish_reason == "tool_calls"
    assert told.message.tool_calls is not None
    assert told.message.tool_calls[0].function.arguments == call.function.arguments
    deltas = [delta for chunk in chunks if chunk.choices for delta in chunk.choices[0].delta.tool_calls or ()]
    assert (deltas[0].index, deltas[0].type, deltas[0].id) == (0, "function", told.message.tool_calls[0].id)
    assert all(delta.id is None and delta.type is None and delta.function.name is None for delta in deltas[1:] if delta.function)


def test_the_whole_round(api: openai.OpenAI) -> None:
    """Asked, called, answered: a model whose template knows no tools is told of them in words."""
    first = api.chat.completions.create(
        model="default", messages=MESSAGES, tools=TOOLS, tool_choice=NAMED, temperature=0, max_tokens=100
    )
    message = first.choices[0].message
    assert message.tool_calls is not None
    answer: Any = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "31 degrees, sunny"}
    second = api.chat.completions.create(
        model="default", messages=[*MESSAGES, message, answer], tools=TOOLS, tool_choice="none", temperature=0, max_tokens=40
    )
    assert second.choices[0].message.tool_calls is None
    assert "31" in (second.choices[0].message.content or "")
    assert first.usage is not None
    assert first.usage.prompt_tokens > 150


def test_grpc(smollm2: Stack) -> None:
    chat = tokenizer_pb2.Chat(
        messages=[tokenizer_pb2.ChatMessage(role="user", content=MESSAGES[0]["content"])], tools_json=map(json.dumps, TOOLS)
    )
    asked = router_pb2.ChatRequest(
        model="default",
        chat=chat,
        options=router_pb2.Options(sampling=types_pb2.Sampling(temperature=0, max_tokens=100)),
        tool_choice=router_pb2.ToolChoice(mode="required", names=["get_weather"]),
        parallel_tool_calls=False,
    )
    with grpc.insecure_channel(smollm2.grpc_address) as channel:
        events = list(router_pb2_grpc.RouterStub(channel).Chat(asked, timeout=60))
    deltas = [delta for event in events for delta in (*event.delta.tool_calls, *event.finished.rest.tool_calls)]
    assert [delta.name for delta in deltas if delta.name] == ["get_weather"]
    check_weather("".join(delta.arguments for delta in deltas))
    assert events[-2].finished.reason == types_pb2.FINISH_REASON_TOOL_CALLS
    assert not any(event.delta.text for event in events)


def letter(seed: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Write a letter to a friend."}]
    asked = {"model": "default", "messages": messages, "tools": WRITE, "tool_choice": "required", "parallel_tool_calls": False}
    return asked | {"seed": seed, "stream": True}


def read(url: str, seen: list[str], ids: list[str], *, body: Any = None, after: str = "", most: int | None = None) -> bool:
    """Adds the pieces of arguments, and ids, of a stream that begins or goes on; whether it came to its end."""
    request = (
        httpx.stream("GET", f"{url}/v1/streams/{after.partition(':')[0]}", headers={"last-event-id": after}, timeout=60)
        if after
        else httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60)
    )
    with request as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if line.startswith("id: "):
                ids.append(line[4:])
            elif line == "data: [DONE]":
                return True
            elif line.startswith("data: "):
                event = json.loads(line[6:])
                assert "error" not in event, event
                for call in event["choices"][0]["delta"].get("tool_calls", ()):
                    seen.append(call.get("id", "") + call["function"]["arguments"])
                if most is not None and len(seen) >= most:
                    return False
    return False


def test_arguments_go_on_where_a_client_lost_them(smollm2: Stack) -> None:
    whole: list[str] = []
    parts: list[str] = []
    ids: list[str] = []
    body = letter(11) | {"max_tokens": 40}
    assert read(smollm2.url, whole, [], body=body)
    done = read(smollm2.url, parts, ids, body=body, most=12)
    while not done:
        done = read(smollm2.url, parts, ids, after=ids[-1], most=len(parts) + 12)
    # Ids of calls are the request's own.
    assert "".join(parts)[29:] == "".join(whole)[29:]
    assert "".join(parts)[:5] == "call_"


def test_a_worker_dies_in_the_middle_of_arguments(smollm2: Stack) -> None:
    """Another run of it follows the same grammar from where the first one was: the arguments are the same, and valid."""
    whole: list[str] = []
    broken: list[str] = []
    body = letter(12)
    assert read(smollm2.url, whole, [], body=body)
    ids: list[str] = []
    assert not read(smollm2.url, broken, ids, body=body, most=5)
    os.kill(smollm2.children()["worker-0"], signal.SIGKILL)
    assert read(smollm2.url, broken, ids, after=ids[-1])
    assert "".join(broken)[29:] == "".join(whole)[29:]
    assert 120 <= len(json.loads("".join(broken)[29:])["text"]) <= 160


def test_messages_of_anthropic(claude: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {"model": "default", "max_tokens": 24, "extra_body": {"temperature": 0}, "system": "Be brief."}
    question: Any = [{"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]}]
    whole = claude.messages.create(**asked, messages=question)
    (block,) = whole.content
    assert block.type == "text"
    assert "Paris" in block.text
    assert whole.stop_reason in ("end_turn", "max_tokens")
    with claude.messages.stream(**asked, messages=question) as stream:
        assert "".join(stream.text_stream) == block.text
        told = stream.get_final_message()
    assert told.content[0].type == "text"
    assert (told.content[0].text, told.stop_reason) == (block.text, whole.stop_reason)
    assert told.usage.output_tokens == whole.usage.output_tokens
    counted = claude.messages.count_tokens(model="default", system="Be brief.", messages=question)
    usage = whole.usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    stopped = claude.messages.create(**asked, messages=question, stop_sequences=["Paris"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "Paris")


def test_tools_of_anthropic(claude: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {"model": "default", "max_tokens": 100, "extra_body": {"temperature": 0}}
    tools: Any = [{"name": "get_weather", "description": "Weather of a city", "input_schema": WEATHER}]
    chosen: Any = {"type": "tool", "name": "get_weather"}
    first = claude.messages.create(**asked, messages=MESSAGES, tools=tools, tool_choice=chosen)
    (call,) = first.content
    assert call.type == "tool_use"
    assert (call.name, first.stop_reason) == ("get_weather", "tool_use")
    check_weather(json.dumps(call.input))
    with claude.messages.stream(**asked, messages=MESSAGES, tools=tools, tool_choice=chosen) as stream:
        kinds = [event.type for event in stream]
        told = stream.get_final_message()
    assert told.content[0].type == "tool_use"
    assert told.content[0].input == call.input
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "31 degrees, sunny"}]}
    turns: Any = [*MESSAGES, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = claude.messages.create(**asked, messages=turns, tools=tools, tool_choice={"type": "none"})
    assert second.content[0].type == "text"
    assert "31" in second.content[0].text


def test_errors_of_anthropic(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        claude.messages.create(model="default", max_tokens=0, messages=MESSAGES)
    body: Any = caught.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert "'max_tokens'" in body["error"]["message"]
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="claude-9", max_tokens=1, messages=MESSAGES)
