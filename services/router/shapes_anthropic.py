"""What answers on Anthropic's paths look like. It knows nothing of how a message comes about."""

from typing import Any, Literal

import msgspec

from services.router.shapes import Shape


class MessageFault(Shape):
    """What went wrong."""

    type: str
    message: str


class MessageError(Shape):
    """Every error."""

    type: Literal["error"]
    error: MessageFault
    request_id: str


class ThinkingCount(Shape):
    """What of the output was thinking."""

    thinking_tokens: int


class MessageUsage(Shape):
    """What it cost; input tokens are those that no cache had."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: ThinkingCount


class MessageAnswer(Shape):
    """The whole message; its blocks are of type text, thinking and tool_use."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessageUsage


class MessageEvent(msgspec.Struct):
    """One event of a message's stream; what else it holds depends on its type."""

    type: str


class MessageCount(Shape):
    """How long a prompt is."""

    input_tokens: int
