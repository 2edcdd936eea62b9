"""Which batches this router runs: those that nobody runs and whose input it has. One that stops is taken up by another.

It knows nothing of what a line asks.
"""

import asyncio
import logging
import secrets
from collections.abc import Mapping

import msgspec

from services.router.batch.inner import Handle
from services.router.batch.record import ENDED, KEEP_S, Batch, Batches
from services.router.batch.work import BatchWork
from services.router.front import Front
from shared.errors import NotFound, Unavailable
from shared.tasks import end_tasks

LOOK_S = 1.0
LEASE_S = 15.0
SWEEP_S = 3600.0
MAX_BATCHES = 2  # run at once by one router; each asks for up to 32 lines
PENDING = "batch-pending"
_EVERYBODY = ""  # no tenant's name: the list of batches that have not ended is the routers' own

logger = logging.getLogger(__name__)


class Pending(msgspec.Struct, frozen=True):
    """A batch that has not ended."""

    tenant: str
    batch_id: str


class BatchRunner:
    """`handles`: what a line may ask, by path."""

    def __init__(self, front: Front, handles: Mapping[str, Handle]):
        self._front = front
        self._handles = dict(handles)
        self._files = front.files
        self._batches = Batches(front.plane.store)
        self._name = secrets.token_hex(8)
        self._running: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Until cancelled; what runs then is left for others."""
        swept_at = 0.0
        loop = asyncio.get_running_loop()
        try:
            while True:
                if not self._front.draining:
                    try:
                        await self._look()
                    except Unavailable:
                        logger.debug("Redis does not answer; batches wait")
                if loop.time() - swept_at > SWEEP_S:
                    swept_at = loop.time()
                    await self._files.sweep()
                await asyncio.sleep(LOOK_S)
        finally:
            await end_tasks(list(self._running.values()))

    async def _look(self) -> None:
        store = self._front.plane.store
        for stored in reversed(await store.newest(_EVERYBODY, PENDING, limit=1000)):
            running = self._running.get(stored.record_id)
            if running is not None and not running.done():
                if not await store.hold(f"batch:{stored.record_id}", self._name, LEASE_S):
                    # Frozen for longer than a lease: it has become another's.
                    running.cancel()
                continue
            self._running.pop(stored.record_id, None)
            pending = msgspec.json.decode(stored.value, type=Pending)
            if len(self._running) < MAX_BATCHES:
                await self._take(pending)

    async def _take(self, pending: Pending) -> None:
        store = self._front.plane.store
        try:
            batch = await self._batches.get(pending.tenant, pending.batch_id)
        except NotFound:
            batch = None
        if batch is None or batch.status in ENDED:
            await store.delete(_EVERYBODY, PENDING, pending.batch_id)
            return
        if not self._files.path(batch.tenant, batch.input_file_id).exists() and not await self._is_lost(batch):
            return
        if await store.hold(f"batch:{batch.id}", self._name, LEASE_S):
            self._running[batch.id] = asyncio.create_task(self._drive(batch), name=batch.id)

    async def _is_lost(self, batch: Batch) -> bool:
        """Whether nobody can have its input any more: the file was deleted."""
        try:
            await self._files.get(batch.tenant, batch.input_file_id)
        except NotFound:
            return True
        return False

    async def _drive(self, batch: Batch) -> None:
        try:
            await BatchWork(self._front, self._files, self._batches, self._handles, batch).run()
        except Unavailable:
            logger.info("batch %s waits for Redis", batch.id)
        except Exception:
            # It is tried again when the next look finds it not ended.
            logger.exception("batch %s stopped", batch.id)
            await asyncio.sleep(LEASE_S)


async def enqueue(front: Front, batch: Batch) -> None:
    """Records a new batch and leaves it to whichever router looks first. Raises Unavailable."""
    await Batches(front.plane.store).add(batch)
    value = msgspec.json.encode(Pending(batch.tenant, batch.id))
    await front.plane.store.write(_EVERYBODY, PENDING, batch.id, value, version=0, ttl_s=KEEP_S)
