"""What a router does again and again: announce itself, look for workers, reap, reconcile, repeat cancels, watch readers.

A loop survives whatever its work raises. It knows nothing of what the work is for.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable

from shared.errors import Unavailable

SEEN_WITHIN_S = 5.0

logger = logging.getLogger(__name__)


class Contact:
    """Whether Redis answers; `returned` is set when it does again, for whoever has to catch up."""

    def __init__(self) -> None:
        self.returned = asyncio.Event()
        self._seen_at = float("-inf")
        self._lost = False

    @property
    def good(self) -> bool:
        """Redis answered within the last 5 s."""
        return time.monotonic() - self._seen_at < SEEN_WITHIN_S

    def seen(self) -> None:
        """It answered."""
        self._seen_at = time.monotonic()
        if self._lost:
            self._lost = False
            self.returned.set()
            logger.info("Redis answers again")

    def lost(self, error: Unavailable) -> None:
        """It did not."""
        if not self._lost:
            self._lost = True
            logger.warning("Redis does not answer", extra={"cause": error.message})


class Loop:
    """Does `work` now and every period_s, spread by ± jitter · period_s, and at once when `wake` is set."""

    def __init__(
        self, period_s: float, work: Callable[[], Awaitable[object]], contact: Contact, wake: asyncio.Event, jitter: float = 0.0
    ):
        self._period_s = period_s
        self._work = work
        self._contact = contact
        self._wake = wake
        self._jitter = jitter
        self._stopping = False
        self.task = asyncio.create_task(self._run(), name=getattr(work, "__name__", "loop"))

    def stop(self) -> None:
        """Ends after what it does now: a call to Redis that is cut off half-way leaves a connection behind."""
        self._stopping = True
        self._wake.set()

    async def _run(self) -> None:
        while not self._stopping:
            try:
                await self._work()
                self._contact.seen()
            except Unavailable as error:
                self._contact.lost(error)
            except Exception:
                logger.exception("a loop's work failed; it goes on")
            await self._pause()

    async def _pause(self) -> None:
        pause_s = self._period_s * random.uniform(1 - self._jitter, 1 + self._jitter)
        try:
            async with asyncio.timeout(pause_s):
                await self._wake.wait()
        except TimeoutError:
            return
        if not self._stopping:
            self._wake.clear()
