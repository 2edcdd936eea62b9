"""The client's end of an OpenAI stream, at the least cost: it notes when bytes came, and reads them when all is over.

Load and server share cores, so nothing is parsed while anything is measured. One connection per request, for every
server alike: some close kept-alive connections. It knows nothing of loads or of statistics.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Target:
    """A server. `base_url` may end in /v1 or not."""

    name: str
    base_url: str
    model: str

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.base_url)
        return parts.hostname or "127.0.0.1", parts.port or 80

    @property
    def path(self) -> str:
        """Where completions are asked for."""
        path = urlsplit(self.base_url).path.rstrip("/")
        return f"{path if path.endswith('/v1') else path + '/v1'}/completions"


@dataclass(slots=True)
class Raw:
    """One request as it went over the wire: bytes and when they came, seconds of `time.perf_counter`."""

    started_at: float
    parts: list[tuple[float, bytes]] = field(default_factory=list)
    ended_at: float = 0.0
    failure: str = ""


def request_bytes(target: Target, prompt: str | list[int], max_tokens: int) -> bytes:
    """A streamed, greedy completion of exactly max_tokens tokens, as HTTP."""
    body = json.dumps(
        {
            "model": target.model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    host, port = target.address
    head = f"POST {target.path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


class _Client(asyncio.Protocol):
    """Sends one request and notes what comes until the answer ends."""

    def __init__(self, request: bytes, raw: Raw, done: "asyncio.Future[None]"):
        self._request = request
        self._raw = raw
        self._done = done
        self._end = b""
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The request goes out."""
        self.transport = transport
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Notes it; the last chunk of a chunked body ends the answer."""
        self._raw.parts.append((time.perf_counter(), data))
        self._end = (self._end + data)[-5:] if len(data) < 5 else data[-5:]
        if self._end == LAST_CHUNK:
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        """Without a chunked body this is the end of the answer."""
        if exc is not None and not self._done.done():
            self._raw.failure = repr(exc)
        self._finish()

    def _finish(self) -> None:
        if not self._done.done():
            self._raw.ended_at = time.perf_counter()
            self._done.set_result(None)


async def exchange(target: Target, request: bytes) -> Raw:
    """Sends `request` and returns when the answer has ended; a connection that fails is told in `failure`."""
    loop = asyncio.get_running_loop()
    raw = Raw(time.perf_counter())
    done: asyncio.Future[None] = loop.create_future()
    try:
        transport, _ = await loop.create_connection(lambda: _Client(request, raw, done), *target.address)
    except OSError as error:
        raw.failure, raw.ended_at = repr(error), time.perf_counter()
        return raw
    try:
        await done
    finally:
        transport.abort()
    return raw


class BodyReader:
    """The body of an HTTP/1.1 answer from its bytes in any pieces. `status` is 0 until the head is whole."""

    def __init__(self) -> None:
        self.status = 0
        self._chunked = False
        self._buffer = b""
        self._left = 0  # bytes of the present chunk, its final line break included

    def feed(self, data: bytes) -> bytes:
        """What `data` adds to the body."""
        self._buffer += data
        if not self.status:
            head, separator, rest = self._buffer.partition(b"\r\n\r\n")
            if not separator:
                return b""
            self.status = int(head.split(b" ", 2)[1])
            self._chunked = b"transfer-encoding: chunked" in head.lower()
            self._buffer = rest
        if not self._chunked:
            body, self._buffer = self._buffer, b""
            return body
        return b"".join(self._chunks())

    def _chunks(self) -> list[bytes]:
        found = []
        while self._buffer:
            if not self._left:
                line, separator, rest = self._buffer.partition(b"\r\n")
                if not separator:
                    break
                size = int(line.split(b";")[0], 16)
                self._left, self._buffer = size + 2, rest
            piece = self._buffer[: self._left]
            self._buffer = self._buffer[len(piece) :]
            found.append(piece[: max(0, self._left - 2)])
            self._left -= len(piece)
        return found


class EventReader:
    """Payloads of server-sent events from their bytes in any pieces; comments and ids are left out."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that `data` completes."""
        self._buffer += data
        if b"\r\n\r\n" in self._buffer:
            self._buffer = self._buffer.replace(b"\r\n", b"\n")
        *events, self._buffer = self._buffer.split(b"\n\n")
        payloads = []
        for event in events:
            lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
            if lines:
                payloads.append(b"\n".join(lines))
        return payloads


@dataclass(frozen=True, slots=True)
class Answer:
    """One request, read. Times in seconds of `time.perf_counter`; token_at: when each event with text came.

    Tokens are what the server's usage says, however many came in one event. error: empty if all is well.
    """

    started_at: float
    ended_at: float
    token_at: tuple[float, ...]
    num_prompt: int
    num_output: int
    error: str


def read(raw: Raw) -> Answer:
    """What `raw` says."""
    body, events = BodyReader(), EventReader()
    token_at: list[float] = []
    usage: tuple[int, int] | None = None
    error = raw.failure
    text = b""
    for at, data in raw.parts:
        piece = body.feed(data)
        if body.status != 200:
            text += piece
            continue
        for payload in events.feed(piece):
            if payload == b"[DONE]":
                continue
            event = json.loads(payload)
            if "error" in event:
                error = error or json.dumps(event["error"])
            if any(choice.get("text") for choice in event.get("choices", ())):
                token_at.append(at)
            usage = _usage(event) or usage
    if body.status != 200 and not error:
        error = f"HTTP {body.status}: {text[:200]!r}"
    if usage is None:
        error = error or "the answer ended without usage"
    num_prompt, num_output = usage or (0, 0)
    return Answer(raw.started_at, raw.ended_at, tuple(token_at), num_prompt, num_output, error)


def _usage(event: dict[str, Any]) -> tuple[int, int] | None:
    usage, timings = event.get("usage"), event.get("timings")
    if usage:
        return usage["prompt_tokens"], usage["completion_tokens"]
    if timings:  # llama.cpp
        return timings.get("prompt_n", 0) + timings.get("cache_n", 0), timings["predicted_n"]
    return None
