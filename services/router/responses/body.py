"""The body of POST /v1/responses, and the chat that it asks for.

Fields: openai-python 3.54. A response is answered like a chat: what it says is translated here, and checked where every chat
is. It knows nothing of how a response is answered or kept.
"""

from typing import Any, Literal

import msgspec

from services.router.responses.items import messages_of
from services.router.schema import ChatBody, Label, Metadata, convert, read
from shared.errors import InvalidRequest

# What nobody can have here; "" and empty values ask for nothing.
_REFUSED = ("conversation", "prompt", "context_management", "moderation", "image", "access_programs", "background_options")
_INCLUDES = ("message.output_text.logprobs", "reasoning.encrypted_content")


class Reasoning(msgspec.Struct, kw_only=True):
    """How much to think. There are no summaries: what is thought is shown."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class TextConfig(msgspec.Struct, kw_only=True):
    """What the text must look like."""

    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class StreamOptions(msgspec.Struct, kw_only=True):
    """Obfuscation pads events against eavesdroppers of encrypted streams; there is none to pad here."""

    include_obfuscation: bool | None = None


class ResponsesBody(msgspec.Struct, kw_only=True):
    """POST /v1/responses."""

    model: str
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: Metadata | None = None
    user: Label | None = None
    # vLLM's
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    priority: int | None = None
    cache_salt: str | None = None
    # Accepted, checked and without effect: they concern OpenAI's own tools, billing and monitoring.
    max_tool_calls: int | None = None
    service_tier: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_retention: Label | None = None
    prompt_cache_options: dict[str, Any] | None = None


def read_body(value: dict[str, Any]) -> tuple[ResponsesBody, list[str]]:
    """The body, and the names of its fields that nobody knows. Raises InvalidRequest."""
    for name in _REFUSED:
        if value.get(name):
            raise InvalidRequest(f"'{name}' is not supported by this server.", param=name, code="unsupported_parameter")
    body, unknown = convert(value, ResponsesBody)
    if body.input is None or body.input == "" or body.input == []:
        raise InvalidRequest("Missing required parameter: 'input'.", param="input", code="missing_required_parameter")
    if body.truncation == "auto":
        text = "'truncation' can only be 'disabled': nothing is ever cut from a conversation without being asked for."
        raise InvalidRequest(text, param="truncation", code="unsupported_parameter")
    for index, name in enumerate(body.include or ()):
        if name not in _INCLUDES:
            raise InvalidRequest(f"Invalid 'include[{index}]': must be one of {', '.join(_INCLUDES)}.", param=f"include[{index}]")
    if body.background and body.store is False:
        raise InvalidRequest("'background' needs 'store': the response is fetched later.", param="background")
    return body, [name for name in unknown if name not in _REFUSED]


def own_items(body: ResponsesBody) -> list[dict[str, Any]]:
    """The input as items."""
    if isinstance(body.input, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": body.input}]}]
    return body.input or []


def chat_of(body: ResponsesBody, items: list[dict[str, Any]]) -> ChatBody:
    """The chat that goes on after `items`, with all turns before it. Raises InvalidRequest for a field as it is called here."""
    chat: dict[str, Any] = {
        "model": body.model,
        "messages": messages_of(items, body.instructions),
        "max_completion_tokens": body.max_output_tokens,
        "logprobs": _wants_logprobs(body) or None,
        "top_logprobs": body.top_logprobs if _wants_logprobs(body) else None,
        "tools": None if body.tools is None else [_tool(tool, index) for index, tool in enumerate(body.tools)],
        "tool_choice": _tool_choice(body.tool_choice),
        "response_format": None if body.text is None else _response_format(body.text.format),
        "verbosity": None if body.text is None else body.text.verbosity,
        "reasoning_effort": None if body.reasoning is None else body.reasoning.effort,
    }
    same = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "priority", "cache_salt", "user", "metadata")
    chat |= {name: getattr(body, name) for name in (*same, "parallel_tool_calls")}
    try:
        return read({name: value for name, value in chat.items() if value is not None}, ChatBody)[0]
    except InvalidRequest as error:
        raise renamed(error) from None


_NAMES = (
    ("messages", "input"),
    ("max_completion_tokens", "max_output_tokens"),
    ("response_format", "text.format"),
    ("reasoning_effort", "reasoning.effort"),
    ("verbosity", "text.verbosity"),
)


def renamed(error: InvalidRequest) -> InvalidRequest:
    """The same with the field as it is called here; which item of the input a message came from is not known any more."""
    param, message = error.param, error.message
    for theirs, ours in _NAMES:
        if param is not None and (param == theirs or param.startswith((theirs + ".", theirs + "["))):
            new = ours if theirs == "messages" else ours + param[len(theirs) :]
            return InvalidRequest(message.replace(f"'{param}'", f"'{new}'"), param=new, code=error.code)
    if param is not None and param.startswith("tools["):
        new = param.replace(".function", "")
        return InvalidRequest(message.replace(f"'{param}'", f"'{new}'"), param=new, code=error.code)
    return error


def _wants_logprobs(body: ResponsesBody) -> bool:
    return bool(body.top_logprobs) or "message.output_text.logprobs" in (body.include or ())


def _tool(tool: dict[str, Any], index: int) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise InvalidRequest(
            f"Invalid 'tools[{index}].type': this server calls no tools of its own; only 'function' is supported.",
            param=f"tools[{index}].type",
            code="unsupported_parameter",
        )
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _tool_choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if choice.get("type") == "allowed_tools" and isinstance(choice.get("tools"), list):
        tools = [
            {"type": "function", "function": {"name": tool.get("name")}} for tool in choice["tools"] if isinstance(tool, dict)
        ]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode", "auto"), "tools": tools}}
    raise InvalidRequest("Invalid 'tool_choice': names no function.", param="tool_choice", code="unsupported_parameter")


def _response_format(wanted: dict[str, Any] | None) -> dict[str, Any] | None:
    if wanted is None or wanted.get("type") != "json_schema":
        return wanted
    return {"type": "json_schema", "json_schema": {name: value for name, value in wanted.items() if name != "type"}}
