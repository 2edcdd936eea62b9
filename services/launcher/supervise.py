"""Keeps child processes running: restarts one that dies, with backoff, and ends all of them in order.

A child lives in its own process group, so that Ctrl-C reaches the parent alone, and holds one end of a socket as standard
input, so that it ends itself when the parent is gone, however it went; over it, it may say once that it is ready. It knows
nothing of what children do.
"""

import asyncio
import json
import logging
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shared.config import child_environment
from shared.errors import StartupError

# A child that ends with this has already printed, in one line, what an operator must change; starting it again is no use.
EXIT_CONFIG = 78
FIRST_BACKOFF_S, MAX_BACKOFF_S, STABLE_S = 0.5, 30.0, 60.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Start:
    """A start that a child told of: its parts in order, each with the seconds it took, and facts (see shared/marks.py)."""

    parts: Sequence[tuple[str, float]]
    facts: Mapping[str, Any]


@dataclass(slots=True)
class Child:
    """One supervised process. `order` says when it is ended: lower first. `on_exit` is awaited before it is started again."""

    name: str
    command: Sequence[str]
    order: int
    grace_s: float
    process: asyncio.subprocess.Process | None = None
    started_at: float = 0.0
    num_restarts: int = 0
    on_exit: Callable[[], Awaitable[None]] | None = None
    ready: asyncio.Future[Start] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    _line: socket.socket | None = field(default=None)
    _heard: bytes = field(default=b"")

    async def start(self) -> None:
        """Starts the process with a fresh socket as its standard input."""
        self._line, theirs = socket.socketpair()
        self._line.setblocking(False)
        self._heard = b""
        self.started_at = time.monotonic()
        with theirs:
            self.process = await asyncio.create_subprocess_exec(
                *self.command, stdin=theirs, env=child_environment(), start_new_session=True
            )
        asyncio.get_running_loop().add_reader(self._line, self._hear)

    def _hear(self) -> None:
        """Takes what the child says until it has said a line; what it is asked to say is that it is ready."""
        if self._line is None:
            return
        try:
            said = self._line.recv(1 << 16)
        except OSError:
            said = b""
        self._heard += said
        line, end, _ = self._heard.partition(b"\n")
        if end or not said:
            asyncio.get_running_loop().remove_reader(self._line)
        if end and not self.ready.done():
            told, before, parts = json.loads(line), self.started_at, []
            for name, ended_at in told["ends"]:
                parts.append((name, ended_at - before))
                before = ended_at
            self.ready.set_result(Start(parts, told["facts"]))

    async def wait(self) -> int:
        """Exit code once it has ended; negative for a signal."""
        code = await self.process.wait() if self.process else 0
        self._close_line()
        return code

    def _close_line(self) -> None:
        if self._line is not None:
            asyncio.get_running_loop().remove_reader(self._line)
            self._line.close()
            self._line = None

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL once its grace is over."""
        if self.process is None or self.process.returncode is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.process.wait(), self.grace_s)
        except TimeoutError:
            logger.warning("a service did not end in time", extra={"child": self.name, "grace_s": self.grace_s})
            self.kill()
            await self.process.wait()
        self._close_line()

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()


class Supervisor:
    """Starts children and keeps them up until `stop`."""

    def __init__(self) -> None:
        self.children: list[Child] = []
        self._watchers: list[asyncio.Task[None]] = []
        self._failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def add(self, child: Child) -> None:
        """Starts `child` and watches over it."""
        await child.start()
        self.children.append(child)
        self._watchers.append(asyncio.create_task(self._watch(child)))

    async def failure(self) -> str:
        """Waits until a child gives up for good; its name. Its own line on standard error says why."""
        return await asyncio.shield(self._failed)

    async def _watch(self, child: Child) -> None:
        backoff_s = FIRST_BACKOFF_S
        while True:
            code = await child.wait()
            # What could start once can again: then the cause is outside, as a Redis that is away for a while.
            if code == EXIT_CONFIG and child.num_restarts == 0:
                if not self._failed.done():
                    self._failed.set_result(child.name)
                return
            if time.monotonic() - child.started_at > STABLE_S:
                backoff_s = FIRST_BACKOFF_S
            logger.warning("a service ended; starting it again", extra={"child": child.name, "code": code, "in_s": backoff_s})
            if child.on_exit is not None:
                await child.on_exit()
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
            child.num_restarts += 1
            await child.start()

    def kill(self) -> None:
        """Ends all children at once; `stop`, if it is waiting for one, goes on."""
        for child in self.children:
            child.kill()

    async def stop(self) -> None:
        """Ends all children, those of lower order first, and watches no more."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        for order in sorted({child.order for child in self.children}):
            await asyncio.gather(*(child.stop() for child in self.children if child.order == order))


def fail_if_missing(name: str, value: object, setting: str) -> None:
    """StartupError if a service started on its own lacks what `serve` would have made for it."""
    if not value:
        variable = "ROADTRAIN_" + setting.upper().replace("-", "_")
        raise StartupError(f"{name} needs --{setting} (or {variable}) when it is not started by `roadtrain serve`")
