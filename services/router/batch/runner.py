"""Which batches this router runs: those whose input it has. It knows nothing of what a line asks."""

import asyncio
from collections.abc import Mapping

import msgspec

from services.router.batch.inner import Handle
from services.router.batch.record import ENDED, KIND, Batch, Batches
from services.router.batch.work import BatchWork
from services.router.errands import Work
from services.router.front import Front
from shared.errors import NotFound

SWEEP_S = 3600.0
MAX_BATCHES = 2  # run at once by one router; each asks for up to 32 lines


class Pending(msgspec.Struct, frozen=True):
    """A batch that has not ended, as an errand."""

    tenant: str


class BatchRunner:
    """`handles`: what a line may ask, by path."""

    def __init__(self, front: Front, handles: Mapping[str, Handle]):
        self._front = front
        self._handles = dict(handles)
        self._files = front.files
        self._batches = Batches(front.plane.store)

    async def offer(self, batch_id: str, value: bytes) -> Work | None:
        """See Errands."""
        tenant = msgspec.json.decode(value, type=Pending).tenant
        try:
            batch = await self._batches.get(tenant, batch_id)
        except NotFound:
            batch = None
        if batch is None or batch.status in ENDED:
            await self._front.errands[KIND].done(batch_id)
            return None
        if not self._files.path(tenant, batch.input_file_id).exists() and not await self._is_lost(batch):
            return None
        return BatchWork(self._front, self._files, self._batches, self._handles, batch).run()

    async def sweep(self) -> None:
        """Removes old files every hour, until cancelled."""
        while True:
            await self._files.sweep()
            await asyncio.sleep(SWEEP_S)

    async def _is_lost(self, batch: Batch) -> bool:
        """Whether nobody can have its input any more: the file was deleted."""
        try:
            await self._files.get(batch.tenant, batch.input_file_id)
        except NotFound:
            return True
        return False


async def enqueue(front: Front, batch: Batch) -> None:
    """Records a new batch and leaves it to whichever router looks first. Raises Unavailable."""
    await Batches(front.plane.store).add(batch)
    await front.errands[KIND].add(batch.id, msgspec.json.encode(Pending(batch.tenant)))
