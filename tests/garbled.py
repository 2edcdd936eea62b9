"""Services that answer some calls with bytes that are no message, as a broken one would. It knows nothing of what they mean."""

from collections.abc import Callable, Collection
from typing import Any

import grpc

NOISE = b"\xff\xff\xff\xff"


class _Catch:
    """Takes what a generated add_XServicer_to_server registers."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Not needed."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """All methods."""
        self.handlers = handlers


def garble(
    add: Callable[[Any, Any], None], service: str, methods: Collection[str], noise: bytes = NOISE
) -> Callable[[Any, grpc.aio.Server], None]:
    """Like `add`, but the answers of `methods` are `noise`."""

    def add_garbled(servicer: Any, server: grpc.aio.Server) -> None:
        caught = _Catch()
        add(servicer, caught)
        handlers = {
            name: handler._replace(response_serializer=lambda _: noise) if name in methods else handler
            for name, handler in caught.handlers.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))

    return add_garbled
