"""What some router must bring to an end though the one that began it may die: batches, responses in the background.

Each errand stands in Redis until it is done. The router that has its lease works on it; when that is lost, any other takes it
up. Work must therefore bear being done twice at once. It knows nothing of what the work is.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from services.router.store import Store
from shared.errors import Unavailable
from shared.tasks import end_tasks

LOOK_S = 1.0
LEASE_S = 6.0
KEEP_S = 30 * 24 * 3600
MAX_LISTED = 10_000
_EVERYBODY = ""  # no tenant's name: errands are the routers' own

logger = logging.getLogger(__name__)

Work = Coroutine[Any, Any, None]
Offer = Callable[[str, bytes], Awaitable[Work | None]]


class Errands:
    """All errands of one kind, seen by one router, which works on at most `most` of them.

    `offer(name, value)` gives the work of an errand that nobody works on, or None if it is not for this router. Work that
    returns or fails before `done` was called is offered again.
    """

    def __init__(self, store: Store, kind: str, offer: Offer, *, most: int):
        self._store = store
        self._kind = f"errand-{kind}"
        self._offer = offer
        self._most = most
        self._holder = secrets.token_hex(8)
        self._running: dict[str, asyncio.Task[None]] = {}

    async def add(self, name: str, value: bytes) -> None:
        """A new one, for whichever router looks first. Raises Unavailable."""
        await self._store.write(_EVERYBODY, self._kind, name, value, version=0, ttl_s=KEEP_S)

    async def begin(self, name: str, value: bytes, work: Work) -> None:
        """A new one that this router works on at once. Raises Unavailable, and then the work is not begun."""
        try:
            await self._hold(name)
            await self.add(name, value)
        except BaseException:
            work.close()
            raise
        self._start(name, work)

    async def done(self, name: str) -> None:
        """It has come to its end."""
        await self._store.delete(_EVERYBODY, self._kind, name)

    async def run(self, is_ending: Callable[[], bool]) -> None:
        """Looks for errands until cancelled; what is not done then is left for others. `is_ending`: take no more."""
        try:
            while True:
                try:
                    await self._look(is_ending())
                except Unavailable:
                    logger.debug("Redis does not answer; errands wait")
                await asyncio.sleep(LOOK_S)
        finally:
            await end_tasks(list(self._running.values()))

    async def _look(self, is_ending: bool) -> None:
        for stored in reversed(await self._store.newest(_EVERYBODY, self._kind, limit=MAX_LISTED)):
            name = stored.record_id
            task = self._running.get(name)
            if task is not None and not task.done():
                if not await self._hold(name):
                    # Frozen for longer than a lease: it has become another's.
                    task.cancel()
                continue
            self._running.pop(name, None)
            if is_ending or len(self._running) >= self._most:
                continue
            work = await self._offer(name, stored.value)
            if work is None:
                continue
            if await self._hold(name):
                self._start(name, work)
            else:
                work.close()

    async def _hold(self, name: str) -> bool:
        return await self._store.hold(f"{self._kind}:{name}", self._holder, LEASE_S)

    def _start(self, name: str, work: Work) -> None:
        self._running[name] = asyncio.create_task(self._work(name, work), name=name)

    async def _work(self, name: str, work: Work) -> None:
        try:
            await work
        except Unavailable as error:
            logger.info("%s waits: %s", name, error.message)
        except Exception:
            logger.exception("%s stopped", name)
            # It is offered again, but not at once: what fails for ever should not be busy.
            await asyncio.sleep(LEASE_S)
