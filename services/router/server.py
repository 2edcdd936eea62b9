"""The sockets of a router: HTTP, gRPC and the admin port, opened together and closed without cutting a stream in its grace.

It knows nothing of what is served.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.router.app import BATCHED, admin_app, http_app
from services.router.auth import KeyRing
from services.router.batch.record import KIND as BATCH
from services.router.batch.runner import MAX_BATCHES, BatchRunner
from services.router.door import GrpcDoor
from services.router.errands import Errands
from services.router.exchange import MAX_HEADER_BYTES
from services.router.front import Front
from services.router.guard import DoorGuard
from services.router.needs import Plane
from services.router.responses.background import KIND as RESPONSE
from services.router.responses.background import MAX_RESPONSES, Background
from services.router.tls import Tls, read_tls
from shared import rpc
from shared.config import Settings
from shared.errors import StartupError
from shared.pb import router_pb2_grpc
from shared.tasks import end_tasks

# Longer than the pools of usual clients keep a connection, so that it is they who close it, never under a request.
KEEP_ALIVE_S = 75
BACKLOG = 2048
READY_PERIOD_S = 0.5
CUT_S = 1.0
LINGER_S = 0.5

_TOO_LARGE = b"headers too large"
_REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which would collect headers without end, with a bound on what comes before their end."""

    _num_header_bytes = 0
    _in_headers = True
    _refused = False

    def data_received(self, data: bytes) -> None:
        """Parses `data`; answers 431 and soon closes when headers go on for too long."""
        if self._refused:
            return
        self._num_header_bytes += len(data)
        super().data_received(data)
        if self._in_headers and self._num_header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self._refused = True
            self.transport.write(_REFUSAL % len(_TOO_LARGE) + _TOO_LARGE)
            # To close on data not yet read would reset the connection, and the client might never see the answer.
            self.loop.call_later(LINGER_S, self.transport.close)

    def on_message_begin(self) -> None:
        """Headers begin."""
        self._in_headers = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Headers are whole; the app counts them exactly."""
        self._in_headers = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The next request, if any, counts from here."""
        self._in_headers = True
        self._num_header_bytes = 0
        super().on_message_complete()


class _Server(uvicorn.Server):
    """uvicorn's server, leaving signals to this process."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts listening and says so."""
        await super().startup(sockets)
        self.up.set()


@dataclass(slots=True)
class _Listening:
    """One HTTP port being served. `port` is 0 for a unix socket."""

    port: int
    server: _Server
    task: asyncio.Task[None]

    async def stop(self) -> None:
        """Takes no new connections, waits for open answers within the grace the server was made with, cuts the rest."""
        self.server.should_exit = True
        await self.task
        cut = list(self.server.server_state.tasks)
        if cut:
            await asyncio.wait(cut, timeout=CUT_S)


@dataclass(slots=True)
class Doors:
    """Everything one router process listens on; ports are those that were bound."""

    front: Front
    http: _Listening
    grpc: rpc.Server
    admin: _Listening
    _tasks: list[asyncio.Task[None]] = field(init=False)

    def __post_init__(self) -> None:
        front = self.front
        batches, responses = BatchRunner(front, BATCHED), Background(front)
        front.errands[BATCH] = Errands(front.plane.store, BATCH, batches.offer, most=MAX_BATCHES)
        front.errands[RESPONSE] = Errands(front.plane.store, RESPONSE, responses.offer, most=MAX_RESPONSES)
        running = [errands.run(lambda: front.draining) for errands in front.errands.values()]
        self._tasks = [
            asyncio.create_task(self._tell_readiness(), name="readiness"),
            asyncio.create_task(front.keys.watch(), name="watch keys"),
            asyncio.create_task(batches.sweep(), name="sweep"),
            *(asyncio.create_task(errands, name="errands") for errands in running),
        ]

    @property
    def port(self) -> int:
        """HTTP."""
        return self.http.port

    @property
    def grpc_port(self) -> int:
        """gRPC."""
        return int(self.grpc.address.rpartition(":")[2])

    @property
    def admin_port(self) -> int:
        """Health and metrics; 0 on a unix socket."""
        return self.admin.port

    async def stop(self, grace_s: float) -> None:
        """Unready at once; open calls get `grace_s` to finish; the admin port goes last."""
        self.front.draining = True
        await end_tasks(self._tasks)
        await self.grpc.set_ready(False)
        await asyncio.gather(self.http.stop(), self.grpc.stop(grace_s))
        await self.admin.stop()

    async def _tell_readiness(self) -> None:
        """Keeps gRPC's health service saying what /readyz says."""
        while True:
            await self.grpc.set_ready(self.front.not_ready() is None)
            await asyncio.sleep(READY_PERIOD_S)


async def serve(settings: Settings, plane: Plane) -> Doors:
    """Opens all doors. Raises StartupError, and leaves nothing open, for a port in use, a bad keys file or certificate."""
    router = settings.router
    tls = read_tls(router.tls_cert_file, router.tls_key_file)
    front = Front(plane, router, KeyRing(router.keys_file), batch_paths=tuple(BATCHED))
    share = settings.serve.num_routers > 1
    port, grpc_port, admin_port = router.ports
    async with contextlib.AsyncExitStack() as undo:
        http_socket = _bind(router.host, port, "port", share=share)
        undo.callback(http_socket.close)
        http = await _listen(http_app(front), router.drain_grace_s, sock=http_socket, tls=tls)
        undo.push_async_callback(http.stop)
        registration = (router_pb2_grpc.add_RouterServicer_to_server, GrpcDoor(front))
        address = f"{_bracketed(router.host)}:{grpc_port}"
        guard = DoorGuard(front.keys, tls.grpc if tls else None)
        grpc_server = await rpc.serve(address, [registration], share_port=share, setting="grpc_port", guard=guard)
        undo.push_async_callback(grpc_server.stop, 0.0)
        if router.admin_socket is not None:
            admin = await _listen(admin_app(front), CUT_S, path=str(router.admin_socket))
        else:
            admin_socket = _bind(router.admin_host, admin_port, "admin_port", share=False)
            admin = await _listen(admin_app(front), CUT_S, sock=admin_socket)
        undo.pop_all()
    return Doors(front, http, grpc_server, admin)


def _bind(host: str, port: int, setting: str, *, share: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named: asyncio turns Nagle's delay off only for sockets that say they are TCP.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if share:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        message = f"cannot listen on {host}:{port}: {(error.strerror or 'refused').lower()}; choose another with {setting}"
        raise StartupError(message) from None
    sock.setblocking(False)
    return sock


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


async def _listen(
    app: ASGIApp, grace_s: float, *, sock: socket.socket | None = None, path: str | None = None, tls: Tls | None = None
) -> _Listening:
    config = uvicorn.Config(
        app,
        uds=path,
        ssl_context_factory=None if tls is None else lambda config, default: tls.http,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        # Who calls is never taken from headers that any caller can set.
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        # uvicorn wants whole seconds by its annotation only.
        timeout_graceful_shutdown=grace_s,  # type: ignore[arg-type]
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(None if sock is None else [sock]))
    up = asyncio.create_task(server.up.wait())
    await asyncio.wait((task, up), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        up.cancel()
        await task
    return _Listening(0 if sock is None else sock.getsockname()[1], server, task)
