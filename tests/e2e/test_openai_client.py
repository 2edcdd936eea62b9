"""The openai client on every resource that is served, answers held strictly to its types: the quick part of `make compat`.

It knows nothing of other clients; they are in tests/compat.
"""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest

from tests.stack import Stack

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
SHORT: Any = {"model": "default", "temperature": 0, "max_tokens": 32}
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class City(pydantic.BaseModel):
    """A city of a country."""

    city: str = pydantic.Field(max_length=12)
    country: str = pydantic.Field(max_length=12)


@pytest.fixture(scope="module")
def api(smollm2: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{smollm2.url}/v1", api_key="none", max_retries=0, timeout=60, _strict_response_validation=True
    ) as client:
        yield client


@pytest.fixture(scope="module")
def lenient(smollm2: Stack) -> Iterator[openai.OpenAI]:
    """As users have it: answers are not held against the types."""
    with openai.OpenAI(base_url=f"{smollm2.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_the_stream_helper_ends_with_the_same_answer(api: openai.OpenAI) -> None:
    whole = api.chat.completions.create(**SHORT, messages=QUESTION, logprobs=True, top_logprobs=2)
    with api.chat.completions.stream(**SHORT, messages=QUESTION, logprobs=True, top_logprobs=2) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason
    assert final.choices[0].logprobs == whole.choices[0].logprobs


def test_an_answer_is_parsed_into_a_type(api: openai.OpenAI) -> None:
    asked = {**SHORT, "max_tokens": 60}
    parsed = api.chat.completions.parse(**asked, messages=QUESTION, response_format=City).choices[0].message.parsed
    assert isinstance(parsed, City)
    answer = api.responses.parse(
        model="default", temperature=0, max_output_tokens=100, input="The capital of France?", text_format=City
    )
    assert isinstance(answer.output_parsed, City)


def test_a_tool_is_called_and_answered(api: openai.OpenAI) -> None:
    asked: Any = {**SHORT, "max_tokens": 48, "tools": [TOOL], "parallel_tool_calls": False}
    message = api.chat.completions.create(**asked, messages=QUESTION, tool_choice="required").choices[0].message
    assert message.tool_calls
    call = message.tool_calls[0]
    assert call.type == "function"
    assert call.function.name == "weather"
    assert set(json.loads(call.function.arguments)) == {"city"}
    named: Any = {"type": "function", "function": {"name": "weather"}}
    with api.chat.completions.stream(**asked, messages=QUESTION, tool_choice=named) as stream:
        streamed = stream.get_final_completion().choices[0].message
    assert streamed.tool_calls
    assert set(json.loads(streamed.tool_calls[0].function.arguments)) == {"city"}
    talk = [*QUESTION, message.to_dict(), {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}]
    assert api.chat.completions.create(**asked, messages=talk, tool_choice="none").choices[0].message.content


def test_completions(api: openai.OpenAI, lenient: openai.OpenAI) -> None:
    asked: Any = {**SHORT, "max_tokens": 4, "prompt": ["Once upon", "There was"], "n": 2, "logprobs": 1}
    whole = api.completions.create(**asked)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    texts = ["", "", "", ""]
    # A choice that has not ended has no reason for its end; the types have one always.
    for chunk in lenient.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]


def test_embeddings(api: openai.OpenAI, lenient: openai.OpenAI) -> None:
    plain = api.embeddings.create(model="default", input=["a text", "another"], encoding_format="float")
    # The client asks for base64 unless told otherwise, and held to its types refuses what it asked for.
    decoded = lenient.embeddings.create(model="default", input=["a text", "another"])
    assert [item.embedding for item in decoded.data] == [pytest.approx(item.embedding) for item in plain.data]
    assert decoded.usage == plain.usage


def test_models(api: openai.OpenAI) -> None:
    listed = list(api.models.list())
    assert api.models.retrieve(listed[0].id) == listed[0]
    with pytest.raises(openai.NotFoundError):
        api.models.retrieve("no/such/model")


def test_responses(api: openai.OpenAI) -> None:
    answer = api.responses.create(model="default", input=QUESTION, temperature=0, max_output_tokens=24)
    assert "Paris" in answer.output_text
    assert answer.usage
    assert api.responses.input_tokens.count(model="default", input=QUESTION).input_tokens == answer.usage.input_tokens
    with api.responses.stream(model="default", input=QUESTION, temperature=0, max_output_tokens=24) as stream:
        numbers = [event.sequence_number for event in stream]
        final = stream.get_final_response()
    assert numbers == list(range(len(numbers)))
    assert final.output_text == answer.output_text
    assert api.responses.retrieve(answer.id).output_text == answer.output_text
    assert len(list(api.responses.input_items.list(answer.id))) == 1
    api.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError):
        api.responses.retrieve(answer.id)


def test_files_and_batches(api: openai.OpenAI) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {**SHORT, "messages": QUESTION}}
    file = api.files.create(file=("lines.jsonl", json.dumps(line).encode()), purpose="batch")
    assert api.files.retrieve(file.id) == file
    assert file in list(api.files.list())
    assert json.loads(api.files.content(file.id).read()) == line
    batch = api.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    assert batch.id in [one.id for one in api.batches.list()]
    assert api.batches.cancel(batch.id).status in ("cancelling", "cancelled", "completed", "finalizing")
    assert api.batches.retrieve(batch.id).input_file_id == file.id
    assert api.files.delete(file.id).deleted


def test_errors_have_their_classes(api: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        api.chat.completions.create(model="default", messages=QUESTION, temperature=-1)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        api.chat.completions.create(model="no-such-model", messages=QUESTION)
