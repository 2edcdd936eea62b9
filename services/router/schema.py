"""The bodies of OpenAI's requests as types, and what is said of every field that is not among them.

Fields: openai-python 3.54, and the extras of vLLM 0.32 that clients send. Types are strict: a boolean is never a number,
a number never a string. Every field may be null, which means its default. It knows nothing of what happens to a request.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from services.router.tools import MAX_TOOLS, Tool, ToolChoice
from shared.errors import InvalidRequest

Label = Annotated[str, Meta(max_length=512)]
MAX_DOCUMENTS = 128
Metadata = Annotated[dict[Annotated[str, Meta(max_length=64)], Label], Meta(max_length=16)]


class StreamOptions(msgspec.Struct, kw_only=True):
    """How to stream. Obfuscation pads events against eavesdroppers of encrypted streams, here only if asked for."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class Prediction(msgspec.Struct, kw_only=True):
    """What the answer may largely be: OpenAI computes faster where it holds; the answer is the same."""

    type: Literal["content"]
    content: str | list["Part"]


class JsonSchema(msgspec.Struct, kw_only=True):
    """A JSON schema by name; strict: all of it must be enforced."""

    name: str
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, kw_only=True):
    """What the answer must be, in OpenAI's words; the last three are vLLM's, for structural tags."""

    type: str
    json_schema: JsonSchema | None = None
    structures: list[Any] | None = None
    triggers: list[Any] | None = None
    format: dict[str, Any] | None = None


class StructuredOutputs(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the answer must be, in vLLM's words: one of the first six; the others say how JSON is laid out."""

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | dict[str, Any] | None = None
    whitespace_pattern: str | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: Literal[False] | None = None


class Body(msgspec.Struct, kw_only=True):
    """What both endpoints take."""

    model: str
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    max_tokens: int | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    # vLLM's
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: int | None = None
    priority: int | None = None
    cache_salt: str | None = None
    truncate_prompt_tokens: int | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    request_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:\-]{1,128}$")] | None = None
    service_tier: Label | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    # Accepted, checked and without effect: see WITHOUT_EFFECT.
    spaces_between_special_tokens: bool | None = None
    user: Label | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_retention: Label | None = None
    prompt_cache_options: dict[str, Any] | None = None


class FunctionCall(msgspec.Struct, kw_only=True):
    """Which function an assistant called; arguments are a JSON text."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, kw_only=True):
    """One call an assistant made."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class Part(msgspec.Struct, kw_only=True):
    """One part of a message's content. What is cached is found without being told where to look."""

    type: str
    text: str | None = None
    refusal: str | None = None
    prompt_cache_breakpoint: dict[str, Any] | None = None


class Message(msgspec.Struct, kw_only=True):
    """One message of a chat, as clients send it and as they send back what they got."""

    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    audio: dict[str, Any] | None = None
    function_call: dict[str, Any] | None = None


class ChatBody(Body, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[Message]
    logprobs: bool | None = None
    top_logprobs: int | None = None
    max_completion_tokens: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    # vLLM's
    include_reasoning: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: Annotated[list[dict[str, Any]], Meta(max_length=MAX_DOCUMENTS)] | None = None
    prediction: Prediction | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class CompletionBody(Body, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    add_special_tokens: bool | None = None


# Fields of which only the type is checked: what they mean at OpenAI's or vLLM's has no counterpart here (docs/api.md).
WITHOUT_EFFECT = frozenset(
    {
        "user",
        "metadata",
        "store",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_cache_options",
        "spaces_between_special_tokens",
        "prediction",
        "verbosity",
    }
)

# Fields that ask for what is not served, and the values that ask for nothing.
_REFUSED: Mapping[str, tuple[Any, ...]] = {
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "prompt_embeds": (),
    "logits_processors": ([],),
    "logprob_token_ids": ([],),
    "return_prompt_text": (False,),
    "thinking_token_budget": (),
    "use_beam_search": (False,),
}
REFUSED: Mapping[type[Body], Mapping[str, tuple[Any, ...]]] = {
    ChatBody: {
        **_REFUSED,
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "audio": (),
        "moderation": (),
        "web_search_options": (),
        "chat_template": (),
        "mm_processor_kwargs": ({},),
        "media_io_kwargs": ({},),
        "add_special_tokens": (False,),
        "echo": (False,),
    },
    CompletionBody: {**_REFUSED, "suffix": ("",)},
}

AnyBody = TypeVar("AnyBody", bound=Body)
AnyStruct = TypeVar("AnyStruct", bound=msgspec.Struct)


def read(value: Mapping[str, Any], body_type: type[AnyBody]) -> tuple[AnyBody, list[str]]:
    """`value` as a body, and the names of its fields that nobody knows. Raises InvalidRequest naming the field."""
    for name, neutral in REFUSED[body_type].items():
        given = value.get(name)
        if given is not None and not any(type(given) is type(one) and given == one for one in neutral):
            instead = "; use 'structured_outputs'" if name.startswith("guided_") else ""
            message = f"'{name}' is not supported by this server{instead}."
            raise InvalidRequest(message, param=name, code="unsupported_parameter")
    body, unknown = convert(value, body_type)
    options = value.get("stream_options") or {}
    unknown += [f"stream_options.{name}" for name in options if name not in _STREAM_OPTIONS]
    return body, [name for name in unknown if name not in REFUSED[body_type]]


def convert(value: Mapping[str, Any], struct: type[AnyStruct]) -> tuple[AnyStruct, list[str]]:
    """`value` as that type, and the names of its fields that the type does not have. Raises InvalidRequest naming the field."""
    try:
        converted = msgspec.convert(value, struct)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None
    return converted, [name for name in value if name not in struct.__struct_fields__]


_STREAM_OPTIONS = frozenset(StreamOptions.__struct_fields__)
_WORDS = {
    "int": "integer",
    "str": "string",
    "bool": "boolean",
    "float": "number",
    "array": "array",
    "object": "object",
    "null": "null",
}
_MISSING = re.compile(r"Object missing required field `(?P<name>\w+)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>[^`]{1,64})`")
_EXPECTED = re.compile(r"Expected `(?P<wanted>[^`]+)`, got `(?P<got>[^`]+)`")
_LENGTH = re.compile(r"Expected `(?P<kind>\w+)` of length <= (?P<most>\d+)")


def _explain(message: str) -> InvalidRequest:
    """msgspec's message as ours: which field, and what it should be. Nothing the client sent is repeated."""
    what, _, path = message.partition(" - at `$")
    param = path.rstrip("`").replace("[...]", "").removeprefix(".")
    if found := _MISSING.match(what):
        name = f"{param}.{found['name']}" if param else found["name"]
        return InvalidRequest(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    if found := _UNKNOWN.match(what):
        name = f"{param}.{found['name']}"
        return InvalidRequest(f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
    if found := _EXPECTED.match(what):
        wanted = " or ".join(_WORDS.get(word, word) for word in found["wanted"].split(" | "))
        got = _WORDS.get(found["got"], found["got"])
        return InvalidRequest(f"Invalid type for '{param}': expected {wanted}, got {got}.", param=param, code="invalid_type")
    if what.startswith("Expected `str` matching regex"):
        return InvalidRequest(f"Invalid '{param}': has characters that it may not have.", param=param, code="invalid_value")
    if found := _LENGTH.match(what):
        code = "string_above_max_length" if found["kind"] == "str" else "array_above_max_length"
        return InvalidRequest(f"Invalid '{param}': the most is {found['most']} long.", param=param, code=code)
    return InvalidRequest(f"Invalid value for '{param}'.", param=param or None, code="invalid_value")
