"""Before every call to the gRPC door: a caller, from its key, or no call at all.

It knows nothing of what the calls do, and nothing of HTTP.
"""

from contextvars import ContextVar
from typing import Any

import grpc

from services.router.auth import Identity, KeyRing

# What load balancers and probes ask, as over HTTP.
_PUBLIC = "/grpc.health.v1.Health/"

_caller: ContextVar[Identity] = ContextVar("caller")


def caller() -> Identity:
    """Who makes the call that this task answers; there is none, and LookupError, where nobody was let in."""
    return _caller.get()


class DoorGuard:
    """See shared.rpc.Guard. `credentials` encrypt the port."""

    def __init__(self, keys: KeyRing, credentials: grpc.ServerCredentials | None):
        self.credentials = credentials
        self._keys = keys

    def admit(self, method: str, context: Any) -> None:
        """Raises Unauthenticated. Each call has a task, so what is set here is that call's alone."""
        if method.startswith(_PUBLIC):
            return
        metadata = context.invocation_metadata() or ()
        _caller.set(self._keys.authenticate([_bytes(value) for key, value in metadata if key == "authorization"]))


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
