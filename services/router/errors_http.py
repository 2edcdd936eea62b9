"""RoadtrainError as HTTP: the status from the one table, headers that clients act on, and a body as each dialect has it.

It knows nothing of what went wrong.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from services.router.anthropic.errors import message_error
from shared.errors import InvalidRequest, RoadtrainError, Unavailable, as_object, mapped

# Statuses that OpenAI's clients send again unless told otherwise.
_RETRIED = frozenset({408, 409, 429})

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class ErrorStyle:
    """How a dialect says what went wrong. in_stream: what stands around the body there; statuses: its own for some of ours."""

    shown: Callable[[RoadtrainError, bytes], dict[str, Any]]
    in_stream: tuple[bytes, bytes]
    statuses: Mapping[int, int] = field(default_factory=dict)

    def body(self, error: RoadtrainError, request_id: bytes) -> bytes:
        """The error as JSON."""
        return msgspec.json.encode(self.shown(error, request_id))

    def event(self, error: RoadtrainError, request_id: bytes) -> bytes:
        """The error as the last thing said in a stream."""
        before, after = self.in_stream
        return before + self.body(error, request_id) + after

    def status(self, error: RoadtrainError) -> int:
        """The HTTP status."""
        ours = mapped(error).http_status
        return self.statuses.get(ours, ours)


def _openai(error: RoadtrainError, _: bytes) -> dict[str, Any]:
    return {"error": as_object(error)}


def _ollama(error: RoadtrainError, _: bytes) -> dict[str, Any]:
    return {"error": error.message}


def _tgi(error: RoadtrainError, _: bytes) -> dict[str, Any]:
    kind = "generation"
    if isinstance(error, InvalidRequest):
        kind = "validation"
    elif isinstance(error, Unavailable):
        kind = "overloaded"
    return {"error": error.message, "error_type": kind}


ANTHROPIC = ErrorStyle(message_error, (b"event: error\ndata: ", b"\n\n"))
OPENAI = ErrorStyle(_openai, (b"data: ", b"\n\n"))
OLLAMA = ErrorStyle(_ollama, (b"", b"\n"))
TGI = ErrorStyle(_tgi, (b"data:", b"\n\n"), {400: 422, 500: 424, 503: 429})

_OF_TGI = frozenset({"/", "/generate", "/generate_stream", "/info"})


def style_of(path: str) -> ErrorStyle:
    """Whose dialect is spoken on this path."""
    if path.startswith("/api/"):
        return OLLAMA
    if path.startswith("/v1/messages"):
        return ANTHROPIC
    return TGI if path in _OF_TGI else OPENAI


def error_headers(error: RoadtrainError) -> Headers:
    """Retry-After (whole seconds and milliseconds), x-should-retry and WWW-Authenticate, where they apply."""
    outside = mapped(error)
    headers: Headers = []
    if outside.http_status in _RETRIED or outside.http_status >= 500:
        headers.append((b"x-should-retry", b"true" if outside.retry else b"false"))
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))))
        headers.append((b"retry-after-ms", b"%d" % math.ceil(error.retry_after_s * 1000)))
    if outside.http_status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if outside.http_status in (408, 413):
        # The rest of the body is not read.
        headers.append((b"connection", b"close"))
    return headers
