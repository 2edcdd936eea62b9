"""The body of a message request, and the chat that it asks for. It knows nothing of how a chat is answered."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from services.router.accept import Caller, chat_request
from services.router.request import GenerateRequest
from services.router.schema import ChatBody, convert, read
from shared.errors import InvalidRequest

# Fields that ask for what is not served.
_REFUSED = ("container", "mcp_servers", "context_management")


class Turn(msgspec.Struct, kw_only=True):
    """One message; content is text or blocks."""

    role: str
    content: str | list[dict[str, Any]]


class OfferedTool(msgspec.Struct, kw_only=True):
    """A tool of the client's own. Its other members concern Anthropic's cache and streaming."""

    name: str
    input_schema: dict[str, Any] | None = None
    description: str | None = None
    type: str | None = None
    strict: bool | None = None


class Chosen(msgspec.Struct, kw_only=True):
    """Which tools may be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct, kw_only=True):
    """Whether to think first, and to show it. How long is the model's own affair."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    display: str | None = None


class CountBody(msgspec.Struct, kw_only=True):
    """POST /v1/messages/count_tokens."""

    model: str
    messages: list[Turn]
    system: str | list[dict[str, Any]] | None = None
    tools: list[OfferedTool] | None = None
    tool_choice: Chosen | None = None
    thinking: Thinking | None = None
    output_config: dict[str, Any] | None = None
    # Accepted and without effect: it concerns Anthropic's cache; ours needs no telling.
    cache_control: dict[str, Any] | None = None


class MessageBody(CountBody, kw_only=True):
    """POST /v1/messages."""

    max_tokens: int
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: float | None = None
    top_k: int | None = None
    # Accepted and without effect: they concern Anthropic's billing and monitoring.
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    inference_geo: str | None = None
    speed: str | None = None


def read_message_body(value: Mapping[str, Any]) -> tuple[MessageBody, list[str]]:
    """The body, and the names of its fields that nobody knows. Raises InvalidRequest."""
    _check_refused(value)
    body, unknown = convert(value, MessageBody)
    return body, [name for name in unknown if name not in _REFUSED]


def read_count_body(value: Mapping[str, Any]) -> tuple[CountBody, list[str]]:
    """The same of a body that is only counted."""
    _check_refused(value)
    body, unknown = convert(value, CountBody)
    return body, [name for name in unknown if name not in _REFUSED]


def _check_refused(value: Mapping[str, Any]) -> None:
    for name in _REFUSED:
        if value.get(name):
            raise InvalidRequest(f"'{name}' is not supported by this server.", param=name, code="unsupported_parameter")


def request_of(body: CountBody, caller: Caller) -> GenerateRequest:
    """The request that a body makes. Raises InvalidRequest for a field as it is called here."""
    try:
        request = chat_request(chat_of(body), caller)
    except InvalidRequest as error:
        theirs = _renamed(error.param or "")
        raise InvalidRequest(
            error.message.replace(f"'{error.param}'", f"'{theirs}'"), param=theirs or None, code=error.code
        ) from None
    names = {"stop": "stop", **request.names}
    return replace(request, names={field: _renamed(name) for field, name in names.items()})


def chat_of(body: CountBody) -> ChatBody:
    """The chat that a body asks for. Raises InvalidRequest."""
    messages = [] if body.system is None else [{"role": "system", "content": _texts(body.system, "system")}]
    for index, turn in enumerate(body.messages):
        messages += _messages(turn, f"messages[{index}]")
    thinks = body.thinking is not None and body.thinking.type != "disabled"
    chat: dict[str, Any] = {
        "model": body.model,
        "messages": messages,
        "continue_final_message": True if body.messages and body.messages[-1].role == "assistant" else None,
        "tools": [_tool(tool, f"tools[{index}]") for index, tool in enumerate(body.tools or ())] or None,
        "tool_choice": None if body.tool_choice is None else _choice(body.tool_choice),
        "parallel_tool_calls": False if body.tool_choice and body.tool_choice.disable_parallel_tool_use else None,
        "reasoning_effort": "high" if thinks else "none",
        "include_reasoning": thinks,
        "response_format": _response_format(body.output_config),
    }
    if isinstance(body, MessageBody):
        chat |= {"max_tokens": body.max_tokens, "stop": body.stop_sequences or None, "top_k": body.top_k}
        chat |= {"temperature": body.temperature, "top_p": body.top_p}
    return read({name: value for name, value in chat.items() if value is not None}, ChatBody)[0]


# What a chat calls its fields, and what they are called here.
_NAMES = (
    (re.compile(r"^stop\b"), "stop_sequences"),
    (re.compile(r"^(tools\[\d+\])\.function\.parameters"), r"\1.input_schema"),
    (re.compile(r"^(tools\[\d+\]|tool_choice)\.function"), r"\1"),
    (re.compile(r"^response_format\.json_schema"), "output_config.format"),
)


def _renamed(name: str) -> str:
    for pattern, theirs in _NAMES:
        name = pattern.sub(theirs, name)
    return name


def _messages(turn: Turn, path: str) -> list[dict[str, Any]]:
    """A turn as messages of a chat: answers of tools are messages of their own."""
    if turn.role not in ("user", "assistant", "system"):
        raise InvalidRequest(f"Invalid '{path}.role': must be user or assistant.", param=f"{path}.role", code="invalid_value")
    if isinstance(turn.content, str):
        return [{"role": turn.role, "content": turn.content}]
    made: list[dict[str, Any]] = []
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for index, block in enumerate(turn.content):
        where = f"{path}.content[{index}]"
        kind = block.get("type")
        if kind == "text":
            texts.append(_string(block, "text", where))
        elif kind == "tool_use" and turn.role == "assistant":
            arguments = json.dumps(_object(block, "input", where), ensure_ascii=False)
            function = {"name": _string(block, "name", where), "arguments": arguments}
            calls.append({"id": _string(block, "id", where), "type": "function", "function": function})
        elif kind == "tool_result" and turn.role == "user":
            content = _texts(block.get("content") or "", f"{where}.content")
            text = f"Error: {content}" if block.get("is_error") is True else content
            made.append({"role": "tool", "tool_call_id": _string(block, "tool_use_id", where), "content": text})
        elif kind not in ("thinking", "redacted_thinking") or turn.role != "assistant":
            # What was thought is not part of what was said.
            raise InvalidRequest(f"Invalid '{where}': this model reads text only.", param=where, code="unsupported_content")
    if calls:
        made.append({"role": "assistant", "content": "\n".join(texts) or None, "tool_calls": calls})
    elif texts or not made:
        made.append({"role": turn.role, "content": "\n".join(texts)})
    return made


def _texts(content: Any, path: str) -> str:
    """Text, or blocks of text as one."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise InvalidRequest(f"Invalid '{path}': must be text or blocks of text.", param=path, code="invalid_type")
    for index, block in enumerate(content):
        if block.get("type") != "text":
            where = f"{path}[{index}]"
            raise InvalidRequest(f"Invalid '{where}': this model reads text only.", param=where, code="unsupported_content")
    return "\n".join(_string(block, "text", f"{path}[{index}]") for index, block in enumerate(content))


def _tool(tool: OfferedTool, path: str) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        message = f"Invalid '{path}.type': this server runs no tools of its own; only your own ('custom') are supported."
        raise InvalidRequest(message, param=f"{path}.type", code="unsupported_parameter")
    if tool.input_schema is None:
        name = f"{path}.input_schema"
        raise InvalidRequest(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema, "strict": tool.strict}
    return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}


def _choice(choice: Chosen) -> str | dict[str, Any]:
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name or ""}}
    return {"auto": "auto", "any": "required", "none": "none"}[choice.type]


def _response_format(config: Mapping[str, Any] | None) -> dict[str, Any] | None:
    given = (config or {}).get("format")
    if given is None:
        return None
    where = "output_config.format"
    if not isinstance(given, dict) or given.get("type") != "json_schema":
        raise InvalidRequest(f"Invalid '{where}': its type must be 'json_schema'.", param=where, code="invalid_value")
    return {"type": "json_schema", "json_schema": {"name": "output", "schema": _object(given, "schema", where), "strict": True}}


def _string(block: Mapping[str, Any], name: str, path: str) -> str:
    value: str = _member(block, name, path, str, "string")
    return value


def _object(block: Mapping[str, Any], name: str, path: str) -> dict[str, Any]:
    value: dict[str, Any] = _member(block, name, path, dict, "object")
    return value


def _member(block: Mapping[str, Any], name: str, path: str, kind: type[Any], word: str) -> Any:
    value, where = block.get(name), f"{path}.{name}"
    if value is None:
        raise InvalidRequest(f"Missing required parameter: '{where}'.", param=where, code="missing_required_parameter")
    if not isinstance(value, kind):
        raise InvalidRequest(f"Invalid type for '{where}': expected {word}.", param=where, code="invalid_type")
    return value
