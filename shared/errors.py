"""Every error a caller or an operator can meet, as one tree, mapped once to HTTP and gRPC.

RoadtrainError
├── InvalidRequest            400  INVALID_ARGUMENT     wrong parameter, bad JSON, too long a prompt
├── Unauthenticated           401  UNAUTHENTICATED
│   └── NoApiKey              401  UNAUTHENTICATED      the caller did not even try
├── PermissionDenied          403  PERMISSION_DENIED
├── NotFound                  404  NOT_FOUND            model, path, stream
├── MethodNotAllowed          405  UNIMPLEMENTED
├── RequestTimeout            408  DEADLINE_EXCEEDED    the client sent too slowly
├── TooLarge                  413  RESOURCE_EXHAUSTED
├── UnsupportedMediaType      415  INVALID_ARGUMENT
├── RateLimited               429  RESOURCE_EXHAUSTED   the caller's own limit
├── InternalError             500  INTERNAL             our fault
│   └── Quarantined           500  INTERNAL             the request crashed workers; do not send it again
├── Unavailable               503  UNAVAILABLE          overloaded, draining, no worker, no Redis
└── DeadlineExceeded          504  DEADLINE_EXCEEDED    accepted, but not done in time
StartupError                  exit 1                    an operator must change something; one line says what

The table below is the only place where an error meets a status. It knows nothing of who raises or shows them.
"""

from collections.abc import Mapping
from dataclasses import dataclass


class RoadtrainError(Exception):
    """An error with the four fields of OpenAI's error object; `code` and `param` may be None."""

    default_code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, retry_after_s: float | None = None):
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code
        self.retry_after_s = retry_after_s


class InvalidRequest(RoadtrainError):
    """The request is wrong; `param` names the field."""

    default_code = "invalid_value"


class Unauthenticated(RoadtrainError):
    """No key, or a wrong one."""

    default_code: str | None = "invalid_api_key"


class NoApiKey(Unauthenticated):
    """No key was sent; OpenAI gives this no code."""

    default_code = None


class PermissionDenied(RoadtrainError):
    """The key is good, but not for this."""

    default_code = "permission_denied"


class NotFound(RoadtrainError):
    """No such model, path or stream."""

    default_code = "not_found"


class MethodNotAllowed(RoadtrainError):
    """The path exists, but not with this method."""

    default_code = "method_not_supported"


class RequestTimeout(RoadtrainError):
    """The client did not finish sending in time."""

    default_code = "request_timeout"


class TooLarge(RoadtrainError):
    """Body or headers over the limit."""

    default_code = "request_too_large"


class UnsupportedMediaType(RoadtrainError):
    """Not JSON, or compressed."""

    default_code = "unsupported_media_type"


class RateLimited(RoadtrainError):
    """The caller is over a limit of its own."""

    default_code = "rate_limit_exceeded"


class InternalError(RoadtrainError):
    """A fault of ours; the message never carries detail."""

    default_code = "internal_error"


class Quarantined(InternalError):
    """This request crashed workers three times; it will not be run again."""

    default_code = "request_quarantined"


class Unavailable(RoadtrainError):
    """Nobody can serve this now; try again later."""

    default_code = "overloaded"


class DeadlineExceeded(RoadtrainError):
    """Accepted, but its deadline passed."""

    default_code = "deadline_exceeded"


class StartupError(Exception):
    """Start-up cannot go on: one line with cause and cure, for the operator."""


@dataclass(frozen=True, slots=True)
class Mapped:
    """How one class of errors looks from outside."""

    http_status: int
    grpc_status: str  # the name of a grpc.StatusCode
    type: str
    retry: bool


_INVALID = "invalid_request_error"

MAPPING: Mapping[type[RoadtrainError], Mapped] = {
    InvalidRequest: Mapped(400, "INVALID_ARGUMENT", _INVALID, False),
    Unauthenticated: Mapped(401, "UNAUTHENTICATED", _INVALID, False),
    PermissionDenied: Mapped(403, "PERMISSION_DENIED", "permission_error", False),
    NotFound: Mapped(404, "NOT_FOUND", _INVALID, False),
    MethodNotAllowed: Mapped(405, "UNIMPLEMENTED", _INVALID, False),
    RequestTimeout: Mapped(408, "DEADLINE_EXCEEDED", "timeout_error", True),
    TooLarge: Mapped(413, "RESOURCE_EXHAUSTED", _INVALID, False),
    UnsupportedMediaType: Mapped(415, "INVALID_ARGUMENT", _INVALID, False),
    RateLimited: Mapped(429, "RESOURCE_EXHAUSTED", "rate_limit_error", True),
    InternalError: Mapped(500, "INTERNAL", "server_error", True),
    Quarantined: Mapped(500, "INTERNAL", "server_error", False),
    Unavailable: Mapped(503, "UNAVAILABLE", "server_error", True),
    DeadlineExceeded: Mapped(504, "DEADLINE_EXCEEDED", "timeout_error", False),
}


def mapped(error: RoadtrainError) -> Mapped:
    """How `error` looks from outside; a subclass without a row of its own looks like its parent."""
    return next(MAPPING[cls] for cls in type(error).__mro__ if cls in MAPPING)


def as_object(error: RoadtrainError) -> dict[str, str | None]:
    """The four fields of OpenAI's error object."""
    return {"message": error.message, "type": mapped(error).type, "param": error.param, "code": error.code}


def from_object(message: str, code: str | None) -> RoadtrainError:
    """The error that another process told of; one whose code no class has by default is taken as the request's fault.

    What went wrong there is known here by its code alone; `internal_error` and codes of ours say the rest.
    """
    known = {cls.default_code: cls for cls in MAPPING}
    return known.get(code, InvalidRequest)(message, code=code)


def from_exception(exception: BaseException) -> RoadtrainError:
    """The error to show for any exception: its own, or an InternalError that says nothing about it."""
    if isinstance(exception, RoadtrainError):
        return exception
    return InternalError("The server had an error while processing the request; it has been logged. Try again.")
