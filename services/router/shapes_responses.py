"""What answers about responses look like: OpenAI's shapes. It knows nothing of how a response is made or kept."""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from services.router.shapes import Shape

Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]


class ResponseFault(Shape):
    """Why it failed."""

    code: str
    message: str


class ResponseIncomplete(Shape):
    """Why it is not whole."""

    reason: Literal["max_output_tokens"]


class ResponseInputDetails(Shape):
    """What the input's tokens were."""

    cached_tokens: int
    cache_write_tokens: int


class ResponseOutputDetails(Shape):
    """What the output's tokens were."""

    reasoning_tokens: int


class ResponseUsage(Shape):
    """What it cost."""

    input_tokens: int
    input_tokens_details: ResponseInputDetails
    output_tokens: int
    output_tokens_details: ResponseOutputDetails
    total_tokens: int


class ResponseReasoning(Shape):
    """How much thinking was asked for."""

    effort: str | None
    summary: str | None


class Response(Shape):
    """A response: what was asked for, and the items of its output (message, reasoning, function_call)."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Status
    background: bool
    error: ResponseFault | None
    incomplete_details: ResponseIncomplete | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[dict[str, Any]]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: ResponseReasoning
    safety_identifier: str | None
    service_tier: str
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: str | None


class ResponseEvent(msgspec.Struct):
    """One event of a response's stream; what else it holds depends on its type."""

    type: str
    sequence_number: int
    response: Response | UnsetType = UNSET


class ResponseDeleted(Shape):
    """It is gone."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ResponseCount(Shape):
    """How long a prompt is."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class ResponseItems(Shape):
    """A page of what was asked."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
