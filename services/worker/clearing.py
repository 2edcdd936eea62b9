"""When a busy worker runs empty, so that a request that must run alone is started: protocol §5, the solo lane.

The queue says which worker, one at a time. That one claims nothing more; what still runs after CLEAR_S, and each suspect
that proved harmless while others wait, is handed back and goes on elsewhere. It knows nothing of requests or engines.
"""

import math
import time

from shared.queue.client import Queue
from shared.queue.types import Owner

# How often a busy worker asks, and how long it waits for what runs to end by itself.
ASK_S = 0.5
CLEAR_S = 5.0


class Clearing:
    """Whether one worker runs empty, and since when."""

    def __init__(self, queue: Queue, owner: Owner):
        self._queue = queue
        self._owner = owner
        self._ask_at = -math.inf
        self._since: float | None = None

    async def wanted(self) -> bool:
        """Whether this worker, which is busy, must claim nothing now. Raises Unavailable if Redis cannot be asked."""
        now = time.monotonic()
        if self._since is None and now < self._ask_at:
            return False
        self._ask_at = now + ASK_S
        if not await self._queue.reserve(self._owner):
            self._since = None
        elif self._since is None:
            self._since = now
        return self._since is not None

    @property
    def overdue(self) -> bool:
        """What still runs has had its time."""
        return self._since is not None and time.monotonic() - self._since > CLEAR_S
