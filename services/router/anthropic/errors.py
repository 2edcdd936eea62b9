"""Errors as Anthropic's clients read them. It knows nothing of what went wrong."""

from typing import Any

from shared.errors import RoadtrainError, mapped

# By HTTP status; what is not here is an "api_error".
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def message_error(error: RoadtrainError, request_id: bytes) -> dict[str, Any]:
    """The error, as the whole answer and as the last event of a stream."""
    kind = _TYPES.get(mapped(error).http_status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id.decode()}
