"""After a worker's stream broke: what it ran is taken from it, unless it dials again at once (protocol §3, revoke).

It knows nothing of why streams break.
"""

import asyncio
import contextlib
import logging

from services.router.sequencer import Binding, Fate
from shared import crash
from shared.errors import Unavailable
from shared.queue.client import Queue
from shared.queue.types import Owner
from shared.tasks import end_tasks

REDIAL_S = 0.3
CLOSE_S = 2.0

logger = logging.getLogger(__name__)


class Revoker:
    """Revokes for one router."""

    def __init__(self, queue: Queue, router_id: str):
        self._queue = queue
        self._router_id = router_id
        self._closing = asyncio.Event()
        self._waiting: set[asyncio.Task[None]] = set()

    def broke(self, bindings: list[Binding]) -> None:
        """A connection ended that these were bound to."""
        if bindings:
            task = asyncio.create_task(self._revoke(bindings), name="revoke")
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)

    async def close(self) -> None:
        """Revokes no more; leases run out by themselves. A call to Redis that is under way is not cut off half-way."""
        self._closing.set()
        if self._waiting:
            await asyncio.wait(self._waiting, timeout=CLOSE_S)
        await end_tasks(list(self._waiting))

    async def _revoke(self, bindings: list[Binding]) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), REDIAL_S)
            return
        left = [binding for binding in bindings if binding.held.bound is binding and binding.held.fate is Fate.OWED]
        try:
            for binding in left:
                owner = Owner.parse(binding.link.owner)
                await self._queue.revoke(self._router_id, binding.held.rid, owner, binding.epoch, binding.held.num_tokens)
            if left:
                crash.point("router.revoked")
                # Half a period sooner than the next turn would: that long the client would wait for its next token.
                await self._queue.reap()
        except Unavailable:
            # The leases run out by themselves once Redis is back.
            logger.warning("could not revoke what a broken stream carried", extra={"num_requests": len(left)})
        if left:
            logger.warning("a worker did not come back; its requests go elsewhere", extra={"owner": left[0].link.owner})
