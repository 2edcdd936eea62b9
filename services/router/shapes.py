"""What answers look like, as types: OpenAI's shapes and the members vLLM adds. `/openapi.json` is made of them.

Endpoints write their JSON by hand, for speed; tests hold every answer against these, unknown members forbidden.
It knows nothing of how an answer comes about.
"""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType


class Shape(msgspec.Struct, forbid_unknown_fields=True):
    """The base of all: what has no default is always there."""


class ErrorObject(Shape):
    """What is wrong and what to do; `param` names the field, `code` is stable."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(Shape):
    """Every error, whatever its status, on paths of OpenAI's."""

    error: ErrorObject


class TopLogprob(Shape):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """The same with the most likely tokens in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Shape):
    """Log-probabilities of a choice's tokens."""

    content: list[TokenLogprob] | None
    refusal: list[TokenLogprob] | None


class CompletionLogprobs(Shape):
    """The same in columns; the first token of a prompt that is given back has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptLogprob(Shape):
    """vLLM's entry of a prompt's token."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class PromptTokensDetails(Shape):
    """What the prompt's tokens were; `cached_tokens` were not computed again."""

    cached_tokens: int
    audio_tokens: int
    image_tokens: int
    text_tokens: int


class CompletionTokensDetails(Shape):
    """What the output's tokens were."""

    reasoning_tokens: int
    audio_tokens: int
    text_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(Shape):
    """What it cost, summed over prompts and choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class FunctionCalled(Shape):
    """A function and its arguments, the text of a JSON object."""

    name: str
    arguments: str


class ToolCalled(Shape):
    """One call of a tool."""

    id: str
    type: Literal["function"]
    function: FunctionCalled


class ChatMessage(Shape):
    """What the assistant said."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: list[ToolCalled] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    function_call: FunctionCalled | UnsetType = UNSET


class ChatChoice(Shape):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls", "function_call"]
    stop_reason: str | int | None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Shape):
    """The whole answer to a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[ChatChoice]
    usage: Usage
    service_tier: str | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class FunctionDelta(Shape):
    """A function's name at first, then pieces of its arguments."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCallDelta(Shape):
    """A piece of the call with this index; only its first has an id."""

    index: int
    function: FunctionDelta
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class ChatDelta(Shape):
    """What is new of a choice."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    refusal: str | UnsetType | None = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    function_call: FunctionDelta | UnsetType = UNSET


class ChatChunkChoice(Shape):
    """A piece of one answer; the last has a reason."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls", "function_call"] | None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletionChunk(Shape):
    """One event of a chat's stream; after the last comes `[DONE]`, unless that was an error."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    service_tier: str | UnsetType = UNSET
    obfuscation: str | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class CompletionChoice(Shape):
    """One continuation, or a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class Completion(Shape):
    """The whole answer to prompts, or one event of its stream, which ends as a chat's does."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    service_tier: str | UnsetType = UNSET
    obfuscation: str | UnsetType = UNSET


class Model(Shape):
    """A model; `max_model_len` counts tokens of prompt and output together, null until a worker is there."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int | None


class ModelList(Shape):
    """Every name that is answered to."""

    object: Literal["list"]
    data: list[Model]


class Status(Shape):
    """All is well."""

    status: Literal["ok"]


class Version(Shape):
    """Which Roadtrain this is."""

    version: str


class Document(msgspec.Struct):
    """This description itself."""

    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]
    components: dict[str, Any]
