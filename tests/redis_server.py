"""Starts a real redis-server for a test, on a private unix socket, with nothing on disk. It knows nothing of the queue."""

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass
class RedisServer:
    """One running server; `url` is for shared.queue.connection.connect."""

    socket_path: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"unix://{self.socket_path}"

    def stop(self) -> None:
        """Ends it at once, as a crash would."""
        self.process.kill()
        self.process.wait()


def redis_binary() -> str:
    """The redis-server beside Python, else the one on PATH."""
    beside = Path(sys.executable).parent / "redis-server"
    found = str(beside) if beside.exists() else shutil.which("redis-server")
    if found is None:
        raise RuntimeError("no redis-server beside Python or on PATH; run `make setup`")
    return found


def launch(socket_path: Path, *options: str) -> RedisServer:
    """Starts a server on `socket_path` (at most about 100 characters) and waits until it answers."""
    base = ["--port", "0", "--unixsocket", str(socket_path), "--save", "", "--maxmemory-policy", "noeviction"]
    process = subprocess.Popen([redis_binary(), *base, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(1000):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(socket_path))
            probe.sendall(b"PING\r\n")
            # One that asks for a password answers as well.
            if probe.recv(16).startswith((b"+PONG", b"-NOAUTH")):
                return RedisServer(socket_path, process)
        if process.poll() is not None:
            raise RuntimeError(f"redis-server exited with {process.returncode}")
        time.sleep(0.005)
    process.kill()
    raise RuntimeError("redis-server did not answer within 5 s")


@contextlib.contextmanager
def redis_server(*options: str) -> Iterator[RedisServer]:
    """A server for the length of a with block, its socket in a short temporary folder of its own."""
    with tempfile.TemporaryDirectory(prefix="rt-") as folder:
        server = launch(Path(folder) / "redis.sock", *options)
        try:
            yield server
        finally:
            server.stop()
