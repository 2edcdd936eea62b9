"""Starts a whole Roadtrain with the sim runner, or any other server, for a bench; and says what its processes cost.

It knows nothing of what is measured.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from shared.config import child_environment

ROOT = Path(__file__).resolve().parent.parent
READY_S = 60.0


def free_port() -> int:
    """A port with two free neighbours above it, as far as one can tell."""
    while True:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                for offset in (1, 2):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port + offset))
            except OSError:
                continue
            return port


@contextlib.contextmanager
def running(command: Sequence[str], ready_url: str, log: Path) -> Iterator[int]:
    """Runs `command` until the end of the block; its process id, once `ready_url` answers 200. Raises RuntimeError."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=ROOT, env=child_environment()
        )
    try:
        deadline = time.monotonic() + READY_S
        while not _answers(ready_url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(command)} did not become ready:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def sim_command(port: int, *flags: str) -> list[str]:
    """`roadtrain serve` on `port` with a worker that computes no model."""
    return ["-m", "services.launcher", "serve", "--runner", "sim", "--port", str(port), "--log-level", "warning", *flags]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def cpu_by_service(pid: int) -> dict[str, float]:
    """CPU seconds so far of the processes that process `pid` started, by what they are; "bare" for itself if it has none."""
    ticks = os.sysconf("SC_CLK_TCK")
    found: dict[str, float] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid or int(entry.name) == pid:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
                name = Path(words[words.index("--config") + 1]).stem if "--config" in words else Path(words[0]).name
                found[name] = found.get(name, 0.0) + (int(fields[11]) + int(fields[12])) / ticks
    return found
