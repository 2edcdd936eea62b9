"""The private redis-server answers on its socket alone and goes when its pipe closes. A real server."""

import asyncio
import subprocess
import time
from pathlib import Path

import redis

from services.launcher import private_redis


def test_it_serves_on_its_socket_and_ends_with_its_pipe(tmp_path: Path) -> None:
    socket = tmp_path / "redis.sock"
    process = subprocess.Popen(private_redis.command(socket), stdin=subprocess.PIPE)
    try:
        client = redis.Redis(unix_socket_path=str(socket))
        deadline = time.monotonic() + 10
        while not answers(client) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("port") == {"port": "0"}
        assert socket.stat().st_mode & 0o077 == 0
        client.close()
        assert process.stdin is not None
        process.stdin.close()
        process.wait(10)
    finally:
        process.kill()
        process.wait()


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


async def test_the_supervisor_notices_when_it_dies(tmp_path: Path) -> None:
    from services.launcher.supervise import Child

    socket = tmp_path / "redis.sock"
    child = Child("redis", private_redis.command(socket), order=0, grace_s=5)
    await child.start()
    async with asyncio.timeout(10):
        while not socket.exists():
            await asyncio.sleep(0.02)
        child.process.kill()
        assert await child.wait() == -9
