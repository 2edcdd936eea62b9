"""One shard of a queue: its keys' prefix, its scripts, and whether its server was there all the time.

Every shard stands wholly in one slot of a cluster; its server may change without those of the others. It knows nothing of
what the scripts do.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from typing import Any

from shared.errors import Unavailable
from shared.queue.connection import redis_errors
from shared.queue.scripts import Scripts


class Shard:
    """`quiet_s`: one lease and one renewal, for which nobody reaps after the server was lost or changed."""

    def __init__(self, scripts: Scripts, prefix: str, quiet_s: float):
        self.prefix = prefix
        # Of the server that answered last; "" before.
        self.run_id = ""
        self._scripts = scripts
        self._quiet_s = quiet_s
        self._quiet_until = -inf

    @property
    def quiet(self) -> bool:
        """Leases may look expired that are not."""
        return time.monotonic() < self._quiet_until

    def be_quiet(self) -> None:
        """The server was lost, or is another."""
        self._quiet_until = time.monotonic() + self._quiet_s

    def is_new(self, run_id: str) -> bool:
        """Takes the run id of the server that answers now; whether it is the first one. A change begins a time of quiet."""
        before, self.run_id = self.run_id, run_id
        if before and before != run_id:
            self.be_quiet()
        return not before and not self.quiet

    async def run(self, name: str, *args: object, within_s: float | None = None) -> Any:
        """One script's reply, given up after within_s. Raises Unavailable."""
        async with self.asking(), asyncio.timeout(within_s):
            return await self._scripts.run(self.prefix, name, args)

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """Around every call to this shard's server."""
        try:
            async with redis_errors():
                yield
        except Unavailable as error:
            if error.code == "queue_unavailable":
                self.be_quiet()
            raise
