"""Anthropic's own client, pointed here by ANTHROPIC_BASE_URL. It knows nothing of the server."""

import asyncio
from typing import Any

import anthropic
import pytest

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
# The SDK's newest types have no `temperature` any more; older ones send it.
GREEDY = {"temperature": 0}
TOOL: Any = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 40}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture
def client() -> anthropic.Anthropic:
    return anthropic.Anthropic(max_retries=0, timeout=60, _strict_response_validation=True)


def test_whole(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(model="default", max_tokens=32, messages=QUESTION, extra_body=GREEDY)
    assert answer.type == "message"
    assert answer.role == "assistant"
    assert answer.stop_reason == "end_turn"
    assert "Paris" in answer.content[0].text
    assert answer.usage.output_tokens > 0


def test_streamed_and_not_are_one_answer(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(model="default", max_tokens=32, messages=QUESTION, extra_body=GREEDY)
    with client.messages.stream(model="default", max_tokens=32, messages=QUESTION, extra_body=GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_system_stop_sequences_and_limits(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(
        model="default", max_tokens=40, messages=QUESTION, extra_body=GREEDY, stop_sequences=["Paris"]
    )
    assert answer.stop_reason == "stop_sequence"
    assert answer.stop_sequence == "Paris"
    cut = client.messages.create(model="default", max_tokens=1, system="You answer briefly.", messages=QUESTION)
    assert cut.stop_reason == "max_tokens"


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}], ids=["any", "named"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_tool_is_called_and_answered(client: anthropic.Anthropic, choice: Any, stream: bool) -> None:
    asked = {"model": "default", "max_tokens": 100, "tools": [TOOL], "extra_body": GREEDY}
    if stream:
        with client.messages.stream(**asked, messages=QUESTION, tool_choice=choice) as events:
            answer = events.get_final_message()
    else:
        answer = client.messages.create(**asked, messages=QUESTION, tool_choice=choice)
    call = next(block for block in answer.content if block.type == "tool_use")
    assert answer.stop_reason == "tool_use"
    assert call.name == "weather"
    assert set(call.input) == {"city"}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Sunny, 21 degrees."}
    talk = [*QUESTION, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    assert client.messages.create(**asked, messages=talk, tool_choice={"type": "none"}).content


def test_tokens_are_counted(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(model="default", max_tokens=1, messages=QUESTION)
    counted = client.messages.count_tokens(model="default", messages=QUESTION)
    usage = answer.usage
    cached = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    assert counted.input_tokens == usage.input_tokens + cached


def test_errors_have_their_classes(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(model="default", max_tokens=0, messages=QUESTION)
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="no-such-model", max_tokens=1, messages=QUESTION)


def test_asynchronously() -> None:
    async def ask() -> str:
        client = anthropic.AsyncAnthropic(max_retries=0)
        async with client, client.messages.stream(model="default", max_tokens=16, messages=QUESTION) as stream:
            return await stream.get_final_text()

    assert asyncio.run(ask())
