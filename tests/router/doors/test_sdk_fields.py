"""Every field of the newest openai-python, and of our own types, stands in our tables, in the documentation and in answers."""

import re
import typing
from pathlib import Path
from typing import Any

import msgspec
import openai.types
import pydantic
import pytest
from openai.types import Completion, CompletionUsage, Model, completion_create_params
from openai.types import chat as chat_types
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat import completion_create_params as chat_create_params

from services.router import shapes
from services.router.accept import Caller, chat_request, completion_requests
from services.router.schema import REFUSED, WITHOUT_EFFECT, ChatBody, CompletionBody, Message, Part, StreamOptions, read
from shared.errors import InvalidRequest
from shared.pb import types_pb2

ROOT = Path(__file__).resolve().parents[3]
BODIES = {ChatBody: "/v1/chat/completions", CompletionBody: "/v1/completions"}
GOOD: dict[Any, dict[str, Any]] = {
    ChatBody: {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    CompletionBody: {"model": "m", "prompt": "hi"},
}
PARAMS = {ChatBody: chat_create_params, CompletionBody: completion_create_params}
CALLER = Caller("tenant", None, 0, types_pb2.TraceContext())

# What answers of OpenAI's hold and ours never do: sound, results of its searches and judgements, what it stored.
NEVER_GIVEN: dict[type, set[str]] = {
    ChatCompletion: {"metadata", "moderation"},
    ChatCompletionChunk: {"moderation"},
    chat_types.ChatCompletionMessage: {"annotations", "audio"},
    chat_types.chat_completion_chunk.ChoiceDelta: {"audio"},
    chat_types.ChatCompletionMessageFunctionToolCall: {"caller"},
    openai.types.completion_usage.PromptTokensDetails: {"cache_write_tokens"},
}
SHAPES: dict[type, type[msgspec.Struct]] = {
    ChatCompletion: shapes.ChatCompletion,
    chat_types.chat_completion.Choice: shapes.ChatChoice,
    chat_types.ChatCompletionMessage: shapes.ChatMessage,
    chat_types.chat_completion.ChoiceLogprobs: shapes.ChatLogprobs,
    chat_types.ChatCompletionTokenLogprob: shapes.TokenLogprob,
    ChatCompletionChunk: shapes.ChatCompletionChunk,
    chat_types.chat_completion_chunk.Choice: shapes.ChatChunkChoice,
    chat_types.chat_completion_chunk.ChoiceDelta: shapes.ChatDelta,
    chat_types.chat_completion_chunk.ChoiceDeltaToolCall: shapes.ToolCallDelta,
    Completion: shapes.Completion,
    openai.types.CompletionChoice: shapes.CompletionChoice,
    openai.types.completion_choice.Logprobs: shapes.CompletionLogprobs,
    CompletionUsage: shapes.Usage,
    openai.types.completion_usage.PromptTokensDetails: shapes.PromptTokensDetails,
    openai.types.completion_usage.CompletionTokensDetails: shapes.CompletionTokensDetails,
    Model: shapes.Model,
}


@pytest.mark.parametrize("body", BODIES)
def test_every_request_field_of_the_sdk_is_known(body: type) -> None:
    ours = {*body.__struct_fields__, *REFUSED[body]}
    module = PARAMS[body]
    for params in (module.CompletionCreateParamsStreaming, module.CompletionCreateParamsNonStreaming):
        theirs = set(typing.get_type_hints(params))
        assert len(theirs) > 15
        assert theirs <= ours


def test_every_field_within_a_request_of_the_sdk_is_known() -> None:
    assert set(typing.get_type_hints(chat_types.ChatCompletionStreamOptionsParam)) <= set(StreamOptions.__struct_fields__)
    for message in typing.get_args(chat_types.ChatCompletionMessageParam):
        assert set(typing.get_type_hints(message)) <= set(Message.__struct_fields__), message
    for part in (chat_types.ChatCompletionContentPartTextParam, chat_types.ChatCompletionContentPartRefusalParam):
        assert set(typing.get_type_hints(part)) <= set(Part.__struct_fields__)


@pytest.mark.parametrize("model", SHAPES)
def test_every_answered_field_of_the_sdk_is_known(model: type[pydantic.BaseModel]) -> None:
    ours = set(SHAPES[model].__struct_fields__)
    assert set(model.model_fields) - NEVER_GIVEN.get(model, set()) - {"shutdown_date"} <= ours
    required = {name for name, field in model.model_fields.items() if field.is_required()}
    always = {field.name for field in msgspec.structs.fields(SHAPES[model]) if field.required}
    assert required <= always | {"index", "finish_reason"}


@pytest.mark.parametrize("body", BODIES)
def test_what_has_no_effect_has_none(body: type) -> None:
    plain = requests_of(body, {})
    values: dict[str, Any] = {
        "metadata": {"a": "b"},
        "store": True,
        "prompt_cache_options": {"mode": "x"},
        "spaces_between_special_tokens": False,
        "verbosity": "low",
        "prediction": {"type": "content", "content": "hello"},
    }
    num_checked = 0
    for name in WITHOUT_EFFECT & set(body.__struct_fields__):
        assert requests_of(body, {name: values.get(name, "x")}) == plain, name
        num_checked += 1
    assert num_checked >= 8


def requests_of(body: type, fields: dict[str, Any]) -> list[Any]:
    read_body, unknown = read(GOOD[body] | fields, body)
    assert not unknown
    return [chat_request(read_body, CALLER)] if body is ChatBody else completion_requests(read_body, CALLER)


@pytest.mark.parametrize("body", BODIES)
def test_the_documented_fields_are_the_codes(body: type) -> None:
    section = (ROOT / "docs" / "api.md").read_text().split(f"## POST {BODIES[body]}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", section, re.MULTILINE)
    assert len(rows) == len(dict(rows))
    effects = dict(rows)
    expected = dict.fromkeys(REFUSED[body], "refused")
    expected |= {name: "none" if name in WITHOUT_EFFECT else "yes" for name in body.__struct_fields__}
    assert effects == expected


def test_strict_refuses_what_nobody_knows_only() -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(GOOD[ChatBody] | {"suffix_": 1, "temperature": "x"}, ChatBody)
    assert refused.value.param == "temperature"
    assert read(GOOD[ChatBody] | {"suffix_": 1, "store": True}, ChatBody)[1] == ["suffix_"]
