"""Every field of a body: what it may be, what is said when it is not, and that nothing ever becomes a 500."""

import json
from typing import Any, get_args

import httpx
import pytest

from services.router.schema import REFUSED, ChatBody, CompletionBody
from services.router.server import Doors
from tests.router.doors.fake_plane import FakePlane
from tests.router.doors.wire import connect

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION: dict[str, Any] = {"model": "tiny", "prompt": "hi"}
ENDPOINTS = {"/v1/chat/completions": (ChatBody, CHAT), "/v1/completions": (CompletionBody, COMPLETION)}
DEEP: list[Any] = []
for _ in range(40):
    DEEP = [DEEP]
ODD = (None, True, 0, -1, 1.5, "", "x", [], {}, 2**64, DEEP, [None], [True], {"x": None}, [[]], [2**64])


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_type_confusion(doors: Doors, path: str) -> None:
    body_type, good = ENDPOINTS[path]
    async with connect(doors.port) as wire:
        for name in [*body_type.__struct_fields__, *REFUSED[body_type]]:
            for value in ODD:
                status, answer = await wire.post(path, good | {name: value})
                allowed = {200, 400, 404} if name == "model" else {200, 400}
                assert status in allowed, (name, value, answer)
                assert status == 200 or json.loads(answer)["error"]["param"] is not None, (name, value, answer)
                assert status == 200 or len(answer) < 1000
        assert (await wire.post(path, good))[0] == 200


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_a_boolean_is_no_number(client: httpx.AsyncClient, path: str) -> None:
    body_type, good = ENDPOINTS[path]
    for name, kind in body_type.__annotations__.items():
        if get_args(kind) and get_args(kind)[0] in (int, float):
            answer = await client.post(path, json=good | {name: True})
            assert answer.json()["error"]["code"] == "invalid_type", name


def user(content: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": content}]


def tool(name: str, **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


CHAT_ERRORS = [
    ({"messages": []}, "messages", "empty_array"),
    ({"messages": user("x") * 2049}, "messages", "array_above_max_length"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
    ({"messages": [{"role": "root", "content": "x"}]}, "messages[0].role", "invalid_value"),
    ({"messages": user(None)}, "messages[0].content", "missing_required_parameter"),
    ({"messages": user([{"type": "image_url", "image_url": {"url": "x"}}])}, "messages[0].content[0]", "unsupported_content"),
    ({"messages": user([{"type": "text"}])}, "messages[0].content[0].text", "missing_required_parameter"),
    ({"messages": user([{"type": "refusal", "refusal": "x"}])}, "messages[0].content[0]", "unsupported_content"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "missing_required_parameter"),
    ({"messages": [{"role": "assistant"}]}, "messages[0].content", "missing_required_parameter"),
    ({"messages": [{"role": "assistant", "audio": {"id": "x"}}]}, "messages[0].audio", "unsupported_content"),
    ({"temperature": 2.1}, "temperature", "decimal_above_max_value"),
    ({"temperature": -0.1}, "temperature", "decimal_below_min_value"),
    ({"top_p": 1.01}, "top_p", "decimal_above_max_value"),
    ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
    ({"max_completion_tokens": -1}, "max_completion_tokens", "integer_below_min_value"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "invalid_value"),
    ({"n": 129}, "n", "integer_above_max_value"),
    ({"n": 10**9}, "n", "integer_above_max_value"),
    ({"stop": ""}, "stop[0]", "invalid_value"),
    ({"stop": ["a"] * 5}, "stop", "array_above_max_length"),
    ({"stop": [1]}, "stop[0]", "invalid_type"),
    ({"seed": 2**63}, "seed", "integer_above_max_value"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
    ({"top_logprobs": 1}, "top_logprobs", "invalid_value"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"-1": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"1000": 1}}, "logit_bias", "invalid_token_id"),
    ({"logit_bias": {"1": 101}}, "logit_bias", "decimal_above_max_value"),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens", "integer_above_max_value"),
    ({"repetition_penalty": 0}, "repetition_penalty", "decimal_below_min_value"),
    ({"top_k": -2}, "top_k", "integer_below_min_value"),
    ({"stop_token_ids": [1000]}, "stop_token_ids[0]", "invalid_token_id"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs", "invalid_value"),
    ({"priority": 10}, "priority", "invalid_value"),
    ({"cache_salt": "x\n"}, "cache_salt", "invalid_value"),
    ({"cache_salt": "x" * 129}, "cache_salt", "invalid_value"),
    ({"user": "x" * 513}, "user", "string_above_max_length"),
    ({"metadata": {str(i): "x" for i in range(17)}}, "metadata", "array_above_max_length"),
    ({"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message", "invalid_value"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
    ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type", "unsupported_parameter"),
    ({"tools": [{"type": "web"}]}, "tools[0].type", "invalid_value"),
    ({"tools": [tool("f"), tool("g"), tool("f")]}, "tools[2].function.name", "invalid_value"),
    ({"tools": [tool("f f")]}, "tools[0].function.name", "invalid_value"),
    ({"tools": [tool("f" * 65)]}, "tools[0].function.name", "invalid_value"),
    ({"tools": [tool(str(i)) for i in range(129)]}, "tools", "array_above_max_length"),
    ({"tools": [tool("f", type="array")]}, "tools[0].function.parameters", "invalid_json_schema"),
    ({"tools": [tool("f", properties=[])]}, "tools[0].function.parameters.properties", "invalid_json_schema"),
    (
        {"tools": [tool("f", properties={"a": {"type": "text"}})]},
        "tools[0].function.parameters.properties.a.type",
        "invalid_json_schema",
    ),
    (
        {"tools": [tool("f", properties={"a": {"pattern": 1}})]},
        "tools[0].function.parameters.properties.a.pattern",
        "invalid_json_schema",
    ),
    ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
    ({"tools": [tool("f")], "tool_choice": "any"}, "tool_choice", "invalid_value"),
    (
        {"tools": [tool("f")], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "tool_choice.function.name",
        "invalid_value",
    ),
    ({"tools": [tool("f")], "tool_choice": {"type": "custom"}}, "tool_choice.type", "unsupported_parameter"),
    (
        {"tools": [tool("f")], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
        "tool_choice.allowed_tools.tools",
        "empty_array",
    ),
    ({"reasoning_effort": "huge"}, "reasoning_effort", "invalid_value"),
    ({"chat_template_kwargs": []}, "chat_template_kwargs", "invalid_type"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "empty_array"),
    ({"guided_json": {"type": "object"}}, "guided_json", "unsupported_parameter"),
    ({"allowed_token_ids": [49152]}, "allowed_token_ids[0]", "invalid_token_id"),
    ({"bad_words": [" "]}, "bad_words[0]", "invalid_value"),
    ({"chat_template": "{{ x }}"}, "chat_template", "unsupported_parameter"),
    ({"model": "nobody"}, "model", "model_not_found"),
    ({"model": "../../etc/passwd"}, "model", "model_not_found"),
]


@pytest.mark.parametrize(("fields", "param", "code"), CHAT_ERRORS)
async def test_chat_errors_name_the_field(client: httpx.AsyncClient, fields: dict[str, Any], param: str, code: str) -> None:
    answer = await client.post("/v1/chat/completions", json=CHAT | fields)
    assert answer.status_code == (404 if code == "model_not_found" else 400)
    error = answer.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")


COMPLETION_ERRORS = [
    ({"prompt": ""}, "prompt", "empty_string"),
    ({"prompt": []}, "prompt", "empty_array"),
    ({"prompt": [[]]}, "prompt[0]", "empty_array"),
    ({"prompt": ["a", ""]}, "prompt[1]", "empty_string"),
    ({"prompt": ["a", 1]}, "prompt", "invalid_type"),
    ({"prompt": [1.5]}, "prompt[0]", "invalid_type"),
    ({"prompt": [-1]}, "prompt", "invalid_token_id"),
    ({"prompt": [[2**63]]}, "prompt[0]", "invalid_token_id"),
    ({"prompt": ["a"] * 129}, "prompt", "array_above_max_length"),
    ({"prompt": ["a"] * 9, "n": 128}, "n", "integer_above_max_value"),
    ({"logprobs": 21}, "logprobs", "integer_above_max_value"),
    ({"logprobs": True}, "logprobs", "invalid_type"),
    ({"echo": True, "logprobs": -1}, "logprobs", "integer_below_min_value"),
    ({"best_of": 1, "n": 2}, "best_of", "invalid_value"),
    ({"best_of": 129}, "best_of", "integer_above_max_value"),
    ({"best_of": 2, "stream": True}, "best_of", "invalid_value"),
    ({"best_of": 2, "n": 0}, "n", "integer_below_min_value"),
    ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
    ({"request_id": "a b"}, "request_id", "invalid_value"),
    ({"suffix": "x"}, "suffix", "unsupported_parameter"),
    ({"min_tokens": 17}, "min_tokens", "integer_above_max_value"),
]


@pytest.mark.parametrize(("fields", "param", "code"), COMPLETION_ERRORS)
async def test_completion_errors_name_the_field(client: httpx.AsyncClient, fields: dict[str, Any], param: str, code: str) -> None:
    answer = await client.post("/v1/completions", json=COMPLETION | fields)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, code)


async def test_missing_fields(client: httpx.AsyncClient) -> None:
    for path, (_, good) in ENDPOINTS.items():
        for name in good:
            answer = await client.post(path, json={key: value for key, value in good.items() if key != name})
            assert answer.json()["error"]["param"] == name
            assert answer.json()["error"]["code"] == "missing_required_parameter"


async def test_what_asks_for_nothing_is_accepted(client: httpx.AsyncClient) -> None:
    for path, (body_type, good) in ENDPOINTS.items():
        for name, neutral in REFUSED[body_type].items():
            for value in (None, *neutral):
                answer = await client.post(path, json=good | {name: value})
                assert answer.status_code == 200, (name, value, answer.text)
                assert "x-roadtrain-ignored-fields" not in answer.headers


async def test_unknown_fields_are_named(client: httpx.AsyncClient) -> None:
    body = CHAT | {"stream": True, "foo": 1, "a b\n": 2, "stream_options": {"bar": True}}
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    assert answer.headers["x-roadtrain-ignored-fields"] == "foo, ?, stream_options.bar"


async def test_parameters_reach_the_plane(client: httpx.AsyncClient, plane: FakePlane) -> None:
    fields = {
        "temperature": 0.5,
        "top_p": 1,
        "seed": -1,
        "stop": "x",
        "max_completion_tokens": 7,
        "logit_bias": {"7": -1, "3": 2},
        "priority": 2,
        "cache_salt": "salt",
        "ignore_eos": True,
        "top_k": 5,
        "skip_special_tokens": False,
        "continue_final_message": True,
    }
    headers = {
        "idempotency-key": "key",
        "x-roadtrain-deadline-ms": "5000",
        "traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01",
    }
    answer = await client.post("/v1/chat/completions", json=CHAT | fields, headers=headers)
    assert answer.status_code == 200, answer.text
    request = plane.generations[-1].request
    params = request.sampling
    assert (params.temperature, params.top_p, params.seed, params.max_tokens) == (0.5, 1.0, -1, 7)
    assert (params.stop, params.logit_bias, params.top_k) == (("x",), ((3, 2.0), (7, -1.0)), 5)
    assert params.ignore_eos
    assert not params.skip_special_tokens
    assert (request.band, request.cache_salt, request.tenant) == (2, "salt", "anonymous")
    assert (request.idempotency_key, request.deadline_ms) == ("key", 5000)
    assert request.trace.traceparent.startswith("00-" + "1" * 32)
    assert request.prompt.continue_final_message


async def test_a_history_with_parts_and_tools(client: httpx.AsyncClient, plane: FakePlane) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    # As openai-python dumps an answer that it sends back.
    assistant = {"role": "assistant", "content": None, "refusal": None, "audio": None, "function_call": None, "annotations": None}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "name": "Ann", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        assistant | {"tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "2"},
    ]
    answer = await client.post("/v1/chat/completions", json=CHAT | {"messages": messages})
    assert answer.status_code == 200, answer.text
    seen = plane.generations[-1].request.prompt.messages
    assert [message.role for message in seen] == ["developer", "user", "assistant", "tool"]
    assert (seen[1].content, seen[1].name) == ("a\nb", "Ann")
    assert not seen[2].HasField("content")
    assert seen[2].tool_calls[0].arguments_json == '{"a": 1}'
    assert seen[3].tool_call_id == "call_1"
    bad = [{**assistant, "tool_calls": [call | {"function": {"name": "f", "arguments": "[1"}}]}]
    answer = await client.post("/v1/chat/completions", json=CHAT | {"messages": bad})
    assert answer.json()["error"]["param"] == "messages[0].tool_calls[0].function.arguments"
