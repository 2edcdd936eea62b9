"""Ollama's bodies, and what they are in OpenAI's words.

Its defaults are its own (temperature 0.8, top_k 40, top_p 0.9, streamed). Options that say how a model is loaded and run have
no effect: that is the operator's choice here. It knows nothing of answers.
"""

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from shared.errors import InvalidRequest

DEFAULTS: Mapping[str, float] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}
# OpenAI's names to Ollama's, for errors.
NAMES: Mapping[str, str] = {
    name: f"options.{name}"
    for name in ("temperature", "top_k", "top_p", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty")
} | {
    "max_completion_tokens": "options.num_predict",
    "max_tokens": "options.num_predict",
    "repetition_penalty": "options.repeat_penalty",
    "response_format": "format",
    "reasoning_effort": "think",
    "chat_template_kwargs": "think",
}


class Options(msgspec.Struct, kw_only=True):
    """How to generate. The second half says how a model is loaded and run, and has no effect."""

    num_predict: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    typical_p: float | None = None
    mirostat: int | None = None
    num_ctx: int | None = None
    num_keep: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    num_thread: int | None = None
    low_vram: bool | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    numa: bool | None = None
    repeat_last_n: int | None = None
    penalize_newline: bool | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None


class Asked(msgspec.Struct, kw_only=True):
    """What both endpoints take. `keep_alive` has no effect: the model stays."""

    model: str
    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    options: Options | None = None
    keep_alive: float | str | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class OllamaFunction(msgspec.Struct, kw_only=True):
    """Which function was called; arguments are an object."""

    name: str
    arguments: dict[str, Any] = {}


class OllamaCall(msgspec.Struct, kw_only=True):
    """One call an assistant made."""

    function: OllamaFunction
    id: str | None = None


class OllamaMessage(msgspec.Struct, kw_only=True):
    """One message of a chat."""

    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[OllamaCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class OllamaChat(Asked, kw_only=True):
    """POST /api/chat. Without messages nothing is generated."""

    messages: list[OllamaMessage] | None = None
    tools: list[dict[str, Any]] | None = None


class OllamaGenerate(Asked, kw_only=True):
    """POST /api/generate. raw: the prompt is continued as it stands, without a template."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    suffix: str | None = None
    template: str | None = None
    context: list[int] | None = None
    images: list[str] | None = None


class OllamaEmbed(msgspec.Struct, kw_only=True):
    """POST /api/embed. truncate, which is the default: an input that is too long is cut at its end."""

    model: str
    input: str | list[str] | None = None
    truncate: bool | None = None
    dimensions: int | None = None
    options: Options | None = None
    keep_alive: float | str | None = None


def chat_body(asked: OllamaChat) -> dict[str, Any]:
    """As an OpenAI chat body. Raises InvalidRequest."""
    return _shared(asked) | {"messages": _messages(asked.messages or []), "tools": asked.tools, "logprobs": asked.logprobs}


def generate_body(asked: OllamaGenerate) -> dict[str, Any]:
    """As an OpenAI chat body, or if it is raw as one of a completion. Raises InvalidRequest."""
    for name in ("suffix", "template", "context", "images"):
        if getattr(asked, name):
            raise InvalidRequest(f"'{name}' is not supported by this server.", param=name, code="unsupported_parameter")
    if asked.raw:
        body = _shared(asked)
        count = body.pop("top_logprobs") or 0
        return body | {
            "prompt": asked.prompt,
            "max_tokens": body.pop("max_completion_tokens"),
            "logprobs": count if asked.logprobs else None,
        }
    messages = [{"role": "system", "content": asked.system}] if asked.system else []
    messages.append({"role": "user", "content": asked.prompt or ""})
    return _shared(asked) | {"messages": messages, "logprobs": asked.logprobs}


def _shared(asked: Asked) -> dict[str, Any]:
    options = asked.options or Options()
    for name, neutral in (("typical_p", 1.0), ("mirostat", 0)):
        if getattr(options, name) not in (None, neutral):
            param = f"options.{name}"
            raise InvalidRequest(f"'{param}' is not supported by this server.", param=param, code="unsupported_parameter")
    same = ("temperature", "top_k", "top_p", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty")
    given = {name: value for name in same if (value := getattr(options, name)) is not None}
    if given.get("stop") == []:
        del given["stop"]
    # Below 1 it means: as many as there is room for.
    limit = options.num_predict if options.num_predict is not None and options.num_predict > 0 else None
    return {
        "model": asked.model,
        **DEFAULTS,
        **given,
        "max_completion_tokens": limit,
        "repetition_penalty": options.repeat_penalty,
        "response_format": _format(asked.format),
        "top_logprobs": asked.top_logprobs,
        **_thinking(asked.think),
    }


def _format(asked: str | dict[str, Any] | None) -> dict[str, Any] | None:
    if not asked:
        return None
    if isinstance(asked, dict):
        return {"type": "json_schema", "json_schema": {"name": "format", "schema": asked}}
    if asked != "json":
        raise InvalidRequest("Invalid 'format': must be \"json\" or a JSON schema.", param="format", code="invalid_value")
    return {"type": "json_object"}


def _thinking(asked: bool | str | None) -> dict[str, Any]:
    if asked is None:
        return {}
    if isinstance(asked, str):
        return {"reasoning_effort": asked}
    return {"chat_template_kwargs": {"enable_thinking": True}} if asked else {"reasoning_effort": "none"}


def _messages(messages: list[OllamaMessage]) -> list[dict[str, Any]]:
    """As OpenAI's, where every call has an id that the answer to it names."""
    made: list[dict[str, Any]] = []
    open_calls: list[tuple[str, str]] = []
    for index, message in enumerate(messages):
        if message.images:
            path = f"messages[{index}].images"
            raise InvalidRequest(f"Invalid '{path}': this model reads text only.", param=path, code="unsupported_content")
        one: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.thinking:
            one["reasoning_content"] = message.thinking
        if message.tool_calls:
            one["content"] = message.content or None
            one["tool_calls"] = [_call(call, f"call_{index}_{at}") for at, call in enumerate(message.tool_calls)]
            open_calls = [(call["id"], call["function"]["name"]) for call in one["tool_calls"]]
        if message.role == "tool":
            one["tool_call_id"] = message.tool_call_id or _answered(open_calls, message.tool_name)
        made.append(one)
    return made


def _call(call: OllamaCall, call_id: str) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": json.dumps(call.function.arguments, ensure_ascii=False)}
    return {"id": call.id or call_id, "type": "function", "function": function}


def _answered(open_calls: list[tuple[str, str]], name: str | None) -> str | None:
    """The id of the call that a tool's message answers: the first of that name, else the first."""
    for at, (call_id, called) in enumerate(open_calls):
        if name in (None, called):
            del open_calls[at]
            return call_id
    return open_calls.pop(0)[0] if open_calls else None
