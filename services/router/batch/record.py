"""A batch as it stands in Redis, and the changes it goes through, each made on the newest version of it.

    validating -> in_progress -> finalizing -> completed
        |             |  (cancelling)  `-----> cancelled, expired
        `-> failed

It knows nothing of who runs a batch, nor of HTTP.
"""

import time
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from services.router.store import Store
from shared.errors import NotFound, Unavailable

KEEP_S = 30 * 24 * 3600
KIND = "batch"
_TRIES = 20

Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
ENDED: frozenset[Status] = frozenset(("failed", "completed", "expired", "cancelled"))


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Why a batch could not begin: the line, from 1, if one is to blame."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """One batch; times are seconds since 1970. Members as OpenAI's; `tenant` and `key_id` are ours and not shown."""

    id: str
    tenant: str
    endpoint: str
    input_file_id: str
    completion_window: str
    status: Status
    created_at: int
    expires_at: int
    key_id: str = ""
    metadata: dict[str, str] | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    faults: tuple[Fault, ...] = ()
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None

    def now(self, status: Status, **changes: Any) -> "Batch":
        """The same in that status from this second on."""
        moment = {} if status == "validating" else {f"{status}_at": int(time.time())}
        return msgspec.structs.replace(self, status=status, **moment, **changes)


class Batches:
    """All batches. Every method raises Unavailable when Redis cannot be asked."""

    def __init__(self, store: Store):
        self._store = store

    async def add(self, batch: Batch) -> None:
        """A new one."""
        await self._store.write(batch.tenant, KIND, batch.id, msgspec.json.encode(batch), version=0, ttl_s=KEEP_S)

    async def get(self, tenant: str, batch_id: str) -> Batch:
        """The tenant's batch. Raises NotFound."""
        stored = await self._store.read(tenant, KIND, batch_id)
        if stored is None:
            raise NotFound(f"There is no batch '{batch_id[:64]}'.", param="batch_id")
        return msgspec.json.decode(stored.value, type=Batch)

    async def newest(self, tenant: str, *, limit: int, after: str | None) -> list[Batch]:
        """A page of the tenant's batches, newest first."""
        page = await self._store.newest(tenant, KIND, limit=limit, after=after)
        return [msgspec.json.decode(stored.value, type=Batch) for stored in page]

    async def change(self, tenant: str, batch_id: str, make: Callable[[Batch], Batch]) -> Batch:
        """The batch after `make`, which sees its newest state and may be asked again if that changed meanwhile."""
        for _ in range(_TRIES):
            stored = await self._store.read(tenant, KIND, batch_id)
            if stored is None:
                raise NotFound(f"There is no batch '{batch_id[:64]}'.", param="batch_id")
            before = msgspec.json.decode(stored.value, type=Batch)
            after = make(before)
            if after == before:
                return before
            value = msgspec.json.encode(after)
            if await self._store.write(tenant, KIND, batch_id, value, version=stored.version, ttl_s=KEEP_S):
                return after
        raise Unavailable("The batch changes too fast; try again.", retry_after_s=1.0)
