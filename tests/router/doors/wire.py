"""A bare HTTP client on one connection, for tests that send thousands of bodies. It knows nothing of what they say."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass


@dataclass
class Wire:
    """One kept-alive connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def post(self, path: str, value: object) -> tuple[int, bytes]:
        """Status and body, chunked bodies unframed only as far as finding their end."""
        body = json.dumps(value).encode()
        self.writer.write(b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body)) + body)
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)).lower()
        if b"transfer-encoding: chunked" in head:
            answer = await asyncio.wait_for(self.reader.readuntil(b"\r\n0\r\n\r\n"), 10)
        else:
            length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            answer = await asyncio.wait_for(self.reader.readexactly(length), 10)
        return int(head.split(b" ")[1]), answer


@contextlib.asynccontextmanager
async def connect(port: int) -> AsyncIterator[Wire]:
    """A connection to a port of this machine."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def post_once(port: int, path: str, value: object) -> tuple[int, bytes]:
    """One post on a connection of its own."""
    async with connect(port) as wire:
        return await wire.post(path, value)
