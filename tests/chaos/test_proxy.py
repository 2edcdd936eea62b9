"""The cable: it carries bytes, and does what it is told to do to them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.chaos.proxy import Proxy


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[Proxy]:
    """A proxy in front of an echo."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_unix_server(echo, str(tmp_path / "echo"))
    cable = Proxy(tmp_path / "cable", tmp_path / "echo")
    await cable.start()
    yield cable
    await cable.close()
    server.close()


async def test_bytes_pass_both_ways(proxy: Proxy) -> None:
    reader, writer = await asyncio.open_unix_connection(str(proxy.path))
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    writer.close()


async def test_a_held_cable_moves_nothing_and_loses_nothing(proxy: Proxy) -> None:
    reader, writer = await asyncio.open_unix_connection(str(proxy.path))
    proxy.hold()
    writer.write(b"later")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.readexactly(5), 0.1)
    proxy.heal()
    assert await reader.readexactly(5) == b"later"
    writer.close()


async def test_a_reset_is_seen_at_once(proxy: Proxy) -> None:
    reader, writer = await asyncio.open_unix_connection(str(proxy.path))
    writer.write(b"x")
    await reader.readexactly(1)
    assert proxy.reset() == 1
    assert await reader.read() == b""
    writer.close()


async def test_a_thin_line_is_slow(proxy: Proxy) -> None:
    reader, writer = await asyncio.open_unix_connection(str(proxy.path))
    proxy.bytes_per_s = 1000
    began_at = asyncio.get_running_loop().time()
    writer.write(b"x" * 200)
    await reader.readexactly(200)
    assert asyncio.get_running_loop().time() - began_at > 0.12
    writer.close()
