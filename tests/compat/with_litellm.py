"""LiteLLM: OpenAI's dialect and Anthropic's through one client. It knows nothing of the server."""

import json

import litellm
import pytest

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 40}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
# OpenAI's dialect, vLLM's as it is hosted, and Anthropic's.
MODELS = ["openai/default", "anthropic/default"]


@pytest.mark.parametrize("model", MODELS)
def test_whole(model: str) -> None:
    answer = litellm.completion(model=model, messages=QUESTION, temperature=0, max_tokens=32)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("model", MODELS)
def test_streamed(model: str) -> None:
    chunks = list(
        litellm.completion(
            model=model, messages=QUESTION, temperature=0, max_tokens=32, stream=True, stream_options={"include_usage": True}
        )
    )
    whole = litellm.stream_chunk_builder(chunks, messages=QUESTION)
    assert "Paris" in whole.choices[0].message.content
    assert whole.usage.completion_tokens > 0


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called(model: str, stream: bool) -> None:
    answer = litellm.completion(
        model=model, messages=QUESTION, tools=[TOOL], tool_choice="required", temperature=0, max_tokens=100, stream=stream
    )
    if stream:
        answer = litellm.stream_chunk_builder(list(answer), messages=QUESTION)
    call = answer.choices[0].message.tool_calls[0]
    assert answer.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "weather"
    assert set(json.loads(call.function.arguments)) == {"city"}


def test_a_schema() -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 9}},
        "required": ["n"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "number", "schema": schema, "strict": True}}
    answer = litellm.completion(model=MODELS[0], messages=QUESTION, response_format=wanted, temperature=0, max_tokens=50)
    assert json.loads(answer.choices[0].message.content)["n"] <= 9


def test_a_completion() -> None:
    answer = litellm.text_completion(
        model="text-completion-openai/default", prompt="Once upon a time", max_tokens=8, temperature=0
    )
    assert answer.choices[0].text


def test_a_response() -> None:
    answer = litellm.responses(model="openai/default", input=QUESTION[0]["content"], temperature=0, max_output_tokens=32)
    assert "Paris" in answer.output[0].content[0].text


def test_embeddings() -> None:
    answer = litellm.embedding(model="openai/default", input=["one text", "another"])
    assert [len(item["embedding"]) for item in answer.data] == [576, 576]


def test_an_error_has_its_class() -> None:
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(model=MODELS[0], messages=QUESTION, temperature=-1, max_tokens=8, num_retries=0)
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(model="openai/no-such-model", messages=QUESTION, max_tokens=8, num_retries=0)
