"""F26: ten thousand clients that keep their connection and ask for nothing cost little memory, and new requests no time."""

import asyncio
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from tests import stack
from tests.chaos.rest import open_files, resident_mib

pytestmark = [pytest.mark.full, pytest.mark.timeout(300)]

NUM_IDLE, SPARE = 10_000, 1_000
MAX_KIB, MAX_RATIO = 40.0, 1.2
NUM_REQUESTS, WIDTH, ROUNDS = 400, 4, 5
REST_S = 1.0
BODY = json.dumps({"model": "default", "prompt": list(range(100, 140)), "max_tokens": 4, "seed": 1, "ignore_eos": True})

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
def system(tmp_path: Path) -> Iterator[stack.Stack]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < NUM_IDLE + SPARE:
        pytest.skip(f"{hard} descriptors are not enough for {NUM_IDLE} connections")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    running = stack.start(tmp_path, "--runner", "sim", "--worker.sim-step-ms", "5")
    try:
        yield running
    finally:
        running.stop()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def exchange(connection: Connection, head: str, body: str = "") -> None:
    """One request and its whole answer."""
    reader, writer = connection
    length = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n" if body else ""
    writer.write(f"{head} HTTP/1.1\r\nhost: localhost\r\n{length}\r\n{body}".encode())
    headers = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    assert headers.startswith("http/1.1 200"), headers
    await reader.readexactly(int(headers.partition("content-length: ")[2].partition("\r\n")[0]))


async def idle(port: int) -> Connection:
    """A client that asked once and stayed."""
    connection = await asyncio.open_connection("127.0.0.1", port)
    await exchange(connection, "GET /v1/models")
    return connection


async def p99(port: int) -> float:
    """Seconds of the slowest but one in a hundred of many requests, each on a connection of its own."""
    times = []

    async def ask() -> None:
        while len(times) < NUM_REQUESTS:
            began_at = time.monotonic()
            connection = await asyncio.open_connection("127.0.0.1", port)
            await exchange(connection, "POST /v1/completions", BODY)
            times.append(time.monotonic() - began_at)
            connection[1].close()

    await asyncio.gather(*(ask() for _ in range(WIDTH)))
    return sorted(times)[int(len(times) * 0.99)]


async def test_ten_thousand_idle_connections(system: stack.Stack) -> None:
    pid = system.children()["router-0"]
    await p99(system.port)
    alone, beside, kib = [], [], []
    # In turns, so that a machine that is busy now and then is so for both.
    for _ in range(ROUNDS):
        alone.append(await p99(system.port))
        before = resident_mib(pid)
        connections: list[Connection] = []
        while len(connections) < NUM_IDLE:
            connections += await asyncio.gather(*(idle(system.port) for _ in range(100)))
        kib.append((resident_mib(pid) - before) * 1024 / NUM_IDLE)
        beside.append(await p99(system.port))
        assert not any(reader.at_eof() for reader, _ in connections)
        for _, writer in connections:
            writer.transport.abort()
        # To let go of them takes the router its time, which is not that of a router without them.
        async with asyncio.timeout(60):
            while open_files(pid) > NUM_IDLE // 10:
                await asyncio.sleep(0.05)
        await asyncio.sleep(REST_S)
    ratio = median(beside) / median(alone)
    each = [f"{1000 * a:.1f} and {1000 * b:.1f}" for a, b in zip(alone, beside, strict=True)]
    print(f"\n{NUM_IDLE} idle connections: {kib[0]:.1f} KiB each; p99 of new requests {ratio:.2f} times that without them")
    print(f"p99 without and with them, ms: {'; '.join(each)}")
    assert kib[0] < MAX_KIB
    assert ratio < MAX_RATIO
