"""One HTTP request and its answer: limits on headers, the body, JSON and event-stream answers, a client that leaves.

It knows nothing of paths, nor of what is asked and answered.
"""

import asyncio
import os
import re
import uuid
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.types import Message, Receive, Scope, Send

from services.router.accept import Caller
from services.router.auth import ANONYMOUS
from services.router.batch.upload import Form, read_form
from services.router.errors_http import OPENAI, ErrorStyle, Headers, error_headers
from services.router.parse import ClientGone, check_media_type, discard, parse_object, read_body
from shared.errors import InvalidRequest, NotFound, RequestTimeout, RoadtrainError
from shared.telemetry import context_from_headers

MAX_HEADERS = 64
MAX_HEADER_BYTES = 16 * 2**10
MAX_DEADLINE_MS = 24 * 3600 * 1000
MAX_NAMED_FIELDS = 32
FILE_CHUNK_BYTES = 256 * 2**10

_HOST = re.compile(rb"[A-Za-z0-9._\-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:\-]{1,128}")
_FIELD = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
EVENT_STREAM = b"text/event-stream; charset=utf-8"
_STREAM_HEADERS: Headers = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]

Result = TypeVar("Result")


class Idle(Protocol):
    """What to do every `every_s` seconds while work goes on."""

    @property
    def every_s(self) -> float:
        """Seconds between ticks."""
        ...

    async def tick(self) -> None:
        """Called when that time has passed."""
        ...


class Exchange:
    """One request and its answer. `answered` is the status sent, 0 before that; `endpoint` the path pattern that took it.

    band: the priority of what it asks for, whatever its body says. style: how its errors are said.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.answered = 0
        self.endpoint = "none"
        self.identity = ANONYMOUS
        self.band: int | None = None
        self.style: ErrorStyle = OPENAI
        self.extra_headers: Headers = []
        # How the caller's limits stand when the answer begins.
        self.standing: Callable[[], list[tuple[str, str]]] = list
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        offered = self.headers.get(b"x-request-id", b"")
        self.request_id = offered if _REQUEST_ID.fullmatch(offered) else uuid.uuid4().hex.encode()
        self._more_body = b"content-length" in self.headers or b"transfer-encoding" in self.headers
        self._received = receive
        self._send = send
        self._streaming = False

    @property
    def path_params(self) -> dict[str, Any]:
        """What the route took from the path."""
        params: dict[str, Any] = self.scope["path_params"]
        return params

    @property
    def tenant(self) -> str:
        """Whose exchange it is."""
        return self.identity.tenant

    def values(self, name: bytes) -> list[bytes]:
        """Every value that was sent of one header."""
        return [value for key, value in self.scope["headers"] if key == name]

    def header_fault(self) -> str | None:
        """What is too much about the headers, or None."""
        received = self.scope["headers"]
        if len(received) > MAX_HEADERS:
            return f"more than {MAX_HEADERS} headers"
        if sum(len(name) + len(value) for name, value in received) > MAX_HEADER_BYTES:
            return f"headers of more than {MAX_HEADER_BYTES} bytes"
        return None

    def check_host(self) -> None:
        """Raises InvalidRequest unless there is exactly one well-formed Host (none in HTTP/1.0)."""
        hosts = self.values(b"host")
        if len(hosts) > 1 or (hosts and not _HOST.fullmatch(hosts[0])):
            raise InvalidRequest("The Host header is malformed or given twice.", code="invalid_host")

    async def _receive(self) -> Message:
        message = await self._received()
        self._more_body = bool(message.get("more_body", False))
        return message

    async def read_object(self, max_bytes: int) -> dict[str, Any]:
        """The JSON object in the body; parse.py lists what is refused."""
        check_media_type(self.headers)
        return parse_object(await read_body(self._receive, self.headers, max_bytes))

    async def read_form(self, path: Path, max_bytes: int) -> Form:
        """The multipart form in the body, its file written to `path`; upload.py lists what is refused."""
        return await read_form(self._receive, self.headers.get(b"content-type", b""), path, max_bytes)

    def caller(self) -> Caller:
        """Who asks and what the headers say. Raises InvalidRequest for a deadline that is no number."""
        deadline = self.headers.get(b"x-roadtrain-deadline-ms", b"0")
        if not deadline.isdigit() or len(deadline) > 9 or int(deadline) > MAX_DEADLINE_MS:
            raise InvalidRequest(
                f"Invalid header 'x-roadtrain-deadline-ms': 0 to {MAX_DEADLINE_MS} milliseconds.",
                param="x-roadtrain-deadline-ms",
                code="invalid_value",
            )
        key = self.headers.get(b"idempotency-key")
        traced = {name: self.headers.get(name.encode(), b"").decode("latin-1") for name in ("traceparent", "tracestate")}
        return Caller(
            identity=self.identity,
            idempotency_key=None if key is None else key.decode("latin-1"),
            deadline_ms=int(deadline),
            trace=context_from_headers(traced),
            after=self.headers.get(b"last-event-id", b"").decode("latin-1"),
            band=self.band,
        )

    def note_ignored(self, names: list[str], *, strict: bool) -> None:
        """Says in a header which fields nobody knows; with `strict` raises InvalidRequest for the first."""
        if not names:
            return
        if strict:
            shown = names[0][:64]
            raise InvalidRequest(f"Unknown parameter: '{shown}'.", param=shown, code="unknown_parameter")
        shown_names = [name if _FIELD.fullmatch(name) else "?" for name in names[:MAX_NAMED_FIELDS]]
        self.extra_headers.append((b"x-roadtrain-ignored-fields", ", ".join(shown_names).encode()))

    def go_by(self, request_id: str | None) -> None:
        """The name by which the body wants to be known, in place of the header's; shown, and used for nothing else."""
        if request_id is not None:
            self.request_id = request_id.encode()

    async def answer(
        self, status: int, body: bytes, media_type: bytes = b"application/json", headers: Headers | None = None
    ) -> None:
        """The whole answer."""
        self.answered = status
        head = [(b"content-type", media_type), (b"content-length", b"%d" % len(body)), *(headers or ())]
        await self._send_head(status, head)
        await self._send({"type": "http.response.body", "body": body})

    async def answer_object(self, value: Any, status: int = 200) -> None:
        """The whole answer, as JSON."""
        await self.answer(status, msgspec.json.encode(value))

    async def answer_error(self, error: RoadtrainError) -> None:
        """The whole answer is an error."""
        headers = error_headers(error)
        closes = (b"connection", b"close") in headers or self.headers.get(b"connection", b"").lower() == b"close"
        if closes and self._more_body and not isinstance(error, RequestTimeout):
            await discard(self._receive, self.headers)
        await self.answer(self.style.status(error), self.style.body(error, self.request_id), headers=headers)

    async def answer_file(self, path: Path) -> None:
        """The whole answer is what stands at `path`, sent as fast as the client reads. Raises NotFound if there is nothing."""
        try:
            file = await asyncio.to_thread(path.open, "rb")
        except FileNotFoundError:
            raise NotFound("The file's content is not on this server.") from None
        with file:
            num_bytes = os.fstat(file.fileno()).st_size
            self.answered = 200
            head = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % num_bytes)]
            await self._send_head(200, head)
            while data := await asyncio.to_thread(file.read, FILE_CHUNK_BYTES):
                await self._send({"type": "http.response.body", "body": data, "more_body": True})
            await self._send({"type": "http.response.body", "body": b""})

    async def begin_events(self, media_type: bytes = EVENT_STREAM) -> None:
        """Begins an event stream."""
        self.answered = 200
        self._streaming = True
        await self._send_head(200, [(b"content-type", media_type), *_STREAM_HEADERS])

    async def fail(self, error: RoadtrainError) -> None:
        """Ends whatever was begun with an error: as the answer, or as the last event of a stream."""
        if not self.answered:
            await self.answer_error(error)
        elif self._streaming:
            await self.write(self.style.event(error, self.request_id), last=True)

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """Further bytes of an event stream; waits while the client reads too slowly."""
        self._streaming = not last
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})

    async def _send_head(self, status: int, headers: Headers) -> None:
        standing = [(name.encode(), value.encode()) for name, value in self.standing()]
        head = [*headers, (b"x-request-id", self.request_id), *self.extra_headers, *standing]
        await self._send({"type": "http.response.start", "status": status, "headers": head})

    async def while_listening(self, work: Coroutine[Any, Any, Result], *, idle: Idle | None = None) -> Result:
        """The result of `work`, which is cancelled as soon as the client leaves: then raises ClientGone.

        `idle` is ticked while the work goes on.
        """
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self._until_gone())
        try:
            while not task.done():
                seconds = None if idle is None else idle.every_s
                done, _ = await asyncio.wait((task, gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                if gone in done and not task.done():
                    raise ClientGone
                if not done and idle is not None:
                    await idle.tick()
            return task.result()
        finally:
            task.cancel()
            gone.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
