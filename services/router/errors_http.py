"""RoadtrainError as HTTP: OpenAI's error object, the status and the headers that its clients act on.

It knows nothing of what went wrong.
"""

import math

import msgspec

from shared.errors import RoadtrainError, as_object, mapped

# Statuses that OpenAI's clients send again unless told otherwise.
_RETRIED = frozenset({408, 409, 429})

Headers = list[tuple[bytes, bytes]]


def error_body(error: RoadtrainError) -> bytes:
    """{"error": {message, type, param, code}} as JSON."""
    return msgspec.json.encode({"error": as_object(error)})


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
