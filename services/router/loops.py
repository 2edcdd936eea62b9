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


async def every(
    period_s: float,
    work: Callable[[], Awaitable[None]],
    contact: Contact,
    *,
    wake: asyncio.Event | None = None,
    jitter: float = 0.0,
) -> None:
    """Does `work` now and every period_s, spread by ± jitter · period_s, and at once when `wake` is set."""
    while True:
        try:
            await work()
            contact.seen()
        except Unavailable as error:
            contact.lost(error)
        except Exception:
            logger.exception("a loop's work failed; it goes on")
        pause_s = period_s * random.uniform(1 - jitter, 1 + jitter)
        if wake is None:
            await asyncio.sleep(pause_s)
            continue
        try:
            async with asyncio.timeout(pause_s):
                await wake.wait()
            wake.clear()
        except TimeoutError:
            pass
