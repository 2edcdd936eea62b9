"""A relay between two services whose cable can be pulled: delay, trickle, reset, or held half-open.

It forwards bytes between unix sockets and knows nothing of what they mean.
"""

import asyncio
import contextlib
from pathlib import Path

CHUNK = 65536
REST_S = 0.05


class Proxy:
    """Listens on `path` and forwards to `target`, which need not exist yet. Knobs may be turned at any time.

    delay_s: added before each chunk. bytes_per_s: 0 for no limit. hold(): nothing moves and nobody is told; what comes
    new is accepted and held as well.
    """

    def __init__(self, path: Path, target: Path):
        self.path = path
        self.target = target
        self.delay_s = 0.0
        self.bytes_per_s = 0.0
        self._open = asyncio.Event()
        self._open.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server

    async def start(self) -> None:
        """Listens."""
        self._server = await asyncio.start_unix_server(self._accepted, str(self.path))

    async def close(self) -> None:
        """Ends everything."""
        self._server.close()
        self.reset()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Aborted transports close their sockets in the loop's next turn.
        await asyncio.sleep(0)

    def hold(self) -> None:
        """Half-open: both ends stay connected, nothing arrives."""
        self._open.clear()

    def heal(self) -> None:
        """As if nothing had been."""
        self.delay_s = self.bytes_per_s = 0.0
        self._open.set()

    def reset(self) -> int:
        """Cuts every connection now; how many."""
        for writer in self._writers:
            writer.transport.abort()
        return len(self._writers) // 2

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._relay(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        pair = [writer]
        try:
            await self._open.wait()
            far_reader, far_writer = await asyncio.open_unix_connection(str(self.target))
            pair.append(far_writer)
            self._writers.add(far_writer)
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        except OSError:
            pass
        finally:
            for each in pair:
                self._writers.discard(each)
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            await self._open.wait()
            if self.bytes_per_s:
                await self._trickle(data, writer)
            else:
                writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError, NotImplementedError):
            writer.write_eof()

    async def _trickle(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        while data:
            size = max(1, int(self.bytes_per_s * REST_S)) if self.bytes_per_s else len(data)
            writer.write(data[:size])
            data = data[size:]
            await writer.drain()
            await asyncio.sleep(REST_S)
