"""gRPC as every service speaks it: keepalive, limits, health, one error mapping, a graceful stop.

Settings: DESIGN section 8. An address is host:port or unix:/path. It knows nothing of what is said.
"""

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, TypeVar

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from shared.errors import InvalidRequest, MethodNotAllowed, RoadtrainError, StartupError, from_exception, mapped
from shared.mtls import Peer

MAX_MESSAGE_BYTES = 16 * 2**20
MAX_METADATA_BYTES = 16 * 2**10
ERROR_CODE_KEY = "roadtrain-error-code"
ERROR_PARAM_KEY = "roadtrain-error-param"
RETRY_AFTER_KEY = "roadtrain-retry-after-s"

_KEEPALIVE = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
)
CHANNEL_OPTIONS = (
    *_KEEPALIVE,
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Proxies are for the outside; services meet each other directly.
    ("grpc.enable_http_proxy", 0),
)
SERVER_OPTIONS = (
    *_KEEPALIVE,
    # Without this a client that pings every 10 s is told to go away. The spelling with `recv` is silently ignored.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 2),
)

logger = logging.getLogger(__name__)

Message = TypeVar("Message")
Registration = tuple[Callable[[Any, grpc.aio.Server], None], Any]


class Guard(Protocol):
    """Who may talk to a server."""

    @property
    def credentials(self) -> grpc.ServerCredentials | None:
        """How its port is encrypted; None: not at all."""
        ...

    def admit(self, method: str, context: Any) -> None:
        """Asked before every call ("/package.Service/Call"); raises RoadtrainError for a caller that must not make it."""
        ...


@dataclass(slots=True)
class Server:
    """A running server. `address` is what was bound: the real port where 0 was asked for."""

    address: str
    _server: grpc.aio.Server
    _health: health.aio.HealthServicer
    _interceptor: "ErrorInterceptor"

    @property
    def num_undecodable(self) -> int:
        """Messages that were none; each has ended its call."""
        return self._interceptor.num_undecodable

    async def set_ready(self, ready: bool) -> None:
        """What the health service answers for the whole server."""
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set("", status)

    async def stop(self, grace_s: float) -> None:
        """Takes no new calls, waits for open ones, then ends them."""
        await self._server.stop(grace_s)

    async def wait(self) -> None:
        """Returns when the server has stopped."""
        await self._server.wait_for_termination()


async def serve(
    address: str,
    servicers: Iterable[Registration],
    *,
    share_port: bool = False,
    setting: str = "address",
    guard: Guard | None = None,
) -> Server:
    """Starts a server with health service and error mapping on `address`; without a guard anyone may talk to it, unencrypted.

    servicers: pairs of a generated add_XServicer_to_server and its servicer. share_port lets several processes
    listen on one port. Raises StartupError naming `setting` if the address cannot be bound.
    """
    options = (*SERVER_OPTIONS, ("grpc.so_reuseport", int(share_port)))
    interceptor = ErrorInterceptor(guard)
    server = grpc.aio.server(options=options, interceptors=[interceptor])
    for add, servicer in servicers:
        add(servicer, server)
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    try:
        credentials = guard and guard.credentials
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if port == 0:
        raise StartupError(f"cannot listen on {address}: it is in use or not allowed; choose another with {setting}")
    await server.start()
    bound = address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"
    running = Server(bound, server, health_servicer, interceptor)
    await running.set_ready(True)
    return running


def connect(address: str, peer: Peer | None = None) -> grpc.aio.Channel:
    """A channel to `address`, encrypted if it is a known `peer`; it connects when first used, and again whenever it has to."""
    if peer is None:
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    options = (*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", peer.name))
    return grpc.aio.secure_channel(address, peer.credentials, options=options)


class Garbled(Exception):
    """The other side sent bytes that are no message of the kind that is spoken."""


def whole(message: Message | None) -> Message:
    """`message`, as a call gave it. Raises Garbled: gRPC gives a client None for bytes it could not read."""
    if message is None:
        raise Garbled("what came is no message")
    return message


def one_line(exception: BaseException) -> str:
    """What went wrong, for a log line: gRPC's own text is many lines."""
    if isinstance(exception, grpc.aio.AioRpcError):
        return f"{exception.code().name}: {(exception.details() or '')[:160]}"
    return f"{type(exception).__name__}: {exception}"


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: RoadtrainError) -> NoReturn:
    """Ends the call with `error`'s status, its message, and its code, param and retry-after as trailing metadata."""
    trailing = [(ERROR_CODE_KEY, error.code), (ERROR_PARAM_KEY, error.param)]
    if error.retry_after_s is not None:
        trailing.append((RETRY_AFTER_KEY, f"{error.retry_after_s:.3f}"))
    metadata = tuple((key, _printable(value)) for key, value in trailing if value)
    # What the servicer has set goes along: what is given here would replace it.
    told = tuple(context.trailing_metadata() or ())
    await context.abort(grpc.StatusCode[mapped(error).grpc_status], error.message, (*told, *metadata))
    raise AssertionError("abort always raises")


def _printable(text: str) -> str:
    # Metadata values are ASCII; a param may quote what the client sent.
    return "".join(char if " " <= char <= "~" else "?" for char in text)[:200]


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Asks whether a caller may call, and turns what a servicer raises into a status: the one place for both on gRPC.

    Counts what is no message.
    """

    def __init__(self, guard: Guard | None = None) -> None:
        self.num_undecodable = 0
        self._guard = guard

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """Wraps the handler that `continuation` finds."""
        handler = await continuation(details)
        if handler is None:
            # A stranger hears the same of calls that are there and of those that are not.
            return grpc.stream_stream_rpc_method_handler(_guard_stream(_no_such_call, self._asked(details.method)))
        wrapped: Callable[..., Any]
        if handler.response_streaming:
            wrapped = _guard_stream(handler.stream_stream or handler.unary_stream, self._asked(details.method))
            make = grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        else:
            wrapped = _guard_unary(handler.stream_unary or handler.unary_unary, self._asked(details.method))
            make = grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        read = self._counted(details.method, handler.request_deserializer, told_later=not handler.request_streaming)
        return make(wrapped, read, handler.response_serializer)

    def _asked(self, method: str) -> Callable[[Any], None]:
        def asked(context: Any) -> None:
            if self._guard is not None:
                self._guard.admit(method, context)

        return asked

    def _counted(self, method: str, read: Callable[[bytes], Any], *, told_later: bool) -> Callable[[bytes], Any]:
        """told_later: what is raised here would reach the caller in gRPC's own words, with names of classes in them."""

        def counted(data: bytes) -> Any:
            try:
                return read(data)
            except DecodeError:
                self.num_undecodable += 1
                logger.warning("what came is no message; the call ends", extra={"method": method, "num_bytes": len(data)})
                if told_later:
                    return _NO_MESSAGE
                raise

        return counted


async def _no_such_call(requests: Any, context: Any) -> None:
    raise MethodNotAllowed("There is no such call.", code="unknown_method")


_NO_MESSAGE = object()


def _check(request: Any) -> None:
    if request is _NO_MESSAGE:
        raise DecodeError


def _guard_unary(method: Callable[..., Awaitable[Any]], admit: Callable[[Any], None]) -> Callable[..., Awaitable[Any]]:
    async def guarded(request: Any, context: Any) -> Any:
        try:
            admit(context)
            _check(request)
            return await method(request, context)
        except Exception as exception:
            await _fail(context, exception)

    return guarded


def _guard_stream(method: Callable[..., Any], admit: Callable[[Any], None]) -> Callable[..., AsyncIterator[Any]]:
    async def guarded(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            admit(context)
            _check(request)
            responses = method(request, context)
            if inspect.isawaitable(responses):
                # A method may also write to the context and return nothing, as the health service's Watch does.
                await responses
                return
            async for response in responses:
                yield response
        except Exception as exception:
            await _fail(context, exception)

    return guarded


async def _fail(context: Any, exception: Exception) -> NoReturn:
    if isinstance(exception, grpc.aio.AbortError):
        raise exception
    if isinstance(exception, DecodeError):
        await abort(context, InvalidRequest("What came is no message of this call.", code="protocol_error"))
    error = from_exception(exception)
    if error is not exception:
        logger.exception("a call failed")
    await abort(context, error)
