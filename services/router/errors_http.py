"""RoadtrainError as HTTP: the error object of OpenAI or Anthropic, the status and the headers that clients act on.

It knows nothing of what went wrong.
"""

import math

import msgspec

from services.router.anthropic.errors import message_error
from shared.errors import RoadtrainError, as_object, mapped

# Statuses that OpenAI's clients send again unless told otherwise.
_RETRIED = frozenset({408, 409, 429})

# Where Anthropic's clients ask.
ANTHROPIC = "/v1/messages"

Headers = list[tuple[bytes, bytes]]


def error_body(error: RoadtrainError, path: str, request_id: bytes) -> bytes:
    """The error as JSON: {"error": {message, type, param, code}}, or as those who use `path` know it."""
    if path.startswith(ANTHROPIC):
        return msgspec.json.encode(message_error(error, request_id))
    return msgspec.json.encode({"error": as_object(error)})


def error_event(error: RoadtrainError, path: str, request_id: bytes) -> bytes:
    """The same as an event of a stream."""
    name = b"event: error\n" if path.startswith(ANTHROPIC) else b""
    return name + b"data: " + error_body(error, path, request_id) + b"\n\n"


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
