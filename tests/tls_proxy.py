"""TLS before a unix socket: what a Redis that speaks TLS looks like to its clients, whatever the one at hand was built with.

It knows nothing of what passes through.
"""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def tls_before(socket: Path, certificate: Path, key: Path) -> Iterator[int]:
    """A port of 127.0.0.1 that passes everything on, from a thread of its own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    loop = asyncio.new_event_loop()
    started: list[int] = []
    up = threading.Event()
    stop = asyncio.Event()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs = await asyncio.open_unix_connection(str(socket))
        try:
            await asyncio.gather(_pass(reader, theirs[1]), _pass(theirs[0], writer))
        finally:
            for each in (writer, theirs[1]):
                each.close()

    async def run() -> None:
        async with await asyncio.start_server(join, "127.0.0.1", 0, ssl=context) as server:
            loop.set_exception_handler(lambda *_: None)
            started.append(server.sockets[0].getsockname()[1])
            up.set()
            await stop.wait()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), daemon=True)
    thread.start()
    if not up.wait(10):
        raise RuntimeError("the proxy did not start")
    try:
        yield started[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()
