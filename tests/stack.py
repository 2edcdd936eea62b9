"""Starts a whole Roadtrain as a user would, in processes of its own, on free ports; for end-to-end tests.

It knows the command and its ports, and nothing of what runs behind them.
"""

import contextlib
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from shared.config import child_environment
from shared.ports import port_is_free

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Stack:
    """A running `roadtrain serve`."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.port + 1}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.port + 2}"

    def sockets(self, role: str) -> list[Path]:
        """The unix sockets of the services of one kind: "worker", "tokenizer", "deliver"."""
        return sorted(self.folder.glob(f"roadtrain-*/{role}-*.sock"))

    def children(self) -> dict[str, int]:
        """Process id of each service by name."""
        words = {pid: line.split("\0") for pid, line in processes_of(self.folder).items()}
        return {Path(word[word.index("--config") + 1]).stem: pid for pid, word in words.items() if "--child" in word}

    def stop(self, timeout_s: float = 30.0) -> int:
        """Ctrl-C; the exit code. Fails if it does not end in time."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"serve did not end within {timeout_s} s:\n{self.log.read_text()[-3000:]}") from None


def processes_of(folder: Path) -> dict[int, str]:
    """Command lines, words ended by NUL, of the processes that were given a path in `folder`, by process id."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes().decode(errors="replace")
            if f"{folder}/" in line:
                found[int(entry.name)] = line
    return found


def free_ports(count: int = 3) -> int:
    """The first of `count` neighbouring ports that are free now, below those that Linux gives to clients.

    A service that starts again must find its own port free: a client that dials it meanwhile may be given that very port, and
    then it is connected to itself.
    """
    while True:
        first = random.randrange(15_000, 32_000)
        if all(port_is_free("127.0.0.1", first + offset) for offset in range(count)):
            return first


def roadtrain(*arguments: str) -> list[str]:
    """The command line of the `roadtrain` command in this environment."""
    return [sys.executable, "-m", "services.launcher", *arguments]


def environment(folder: Path) -> dict[str, str]:
    """For a `roadtrain` whose temporary files are to lie in `folder`."""
    return {**child_environment(), "TMPDIR": str(folder)}


def start(folder: Path, *flags: str, timeout_s: float = 60.0) -> Stack:
    """`roadtrain serve` with `flags`, ready to answer; its output goes to a file in `folder`."""
    port = free_ports()
    log = folder / f"serve-{port}.log"
    with log.open("wb") as out:
        command = roadtrain("serve", "--port", str(port), *flags)
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env=environment(folder)
        )
    stack = Stack(process, port, log, folder)
    deadline = time.monotonic() + timeout_s
    while not is_ready(stack):
        if process.poll() is not None or time.monotonic() > deadline:
            stack.stop()
            raise AssertionError(f"serve did not become ready:\n{log.read_text()[-5000:]}")
        time.sleep(0.05)
    return stack


def is_ready(stack: Stack) -> bool:
    """Whether the first router says it can take requests."""
    try:
        with urllib.request.urlopen(f"{stack.admin_url}/readyz", timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
