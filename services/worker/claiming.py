"""When a worker claims, and how much: woken by the bell and by the poll, as long as its engine has room.

What must run alone stops it: while one that it has is not past the place where its last worker died, and while a whole worker
is asked for (clearing.py). While Redis cannot be asked nothing new is claimed. It knows nothing of leases, of routers or of
how a claim becomes a running sequence.
"""

import asyncio
import random
from typing import Protocol

from services.worker.assignment import Assignment
from services.worker.clearing import Clearing
from services.worker.engine.engine import Engine
from shared import crash
from shared.errors import Unavailable
from shared.queue.client import Queue
from shared.queue.types import Claim, Owner

POLL_S = 0.25
# Requests of one claim. What it leaves is there for an idler worker.
CLAIM_AT_ONCE = 8
# A busy worker leaves a ring to an idler one for up to this long.
YIELD_S = 0.01
# After a request that was made with other numerics: that is somebody else's to take.
MISMATCH_PAUSE_S = 0.5


class Holder(Protocol):
    """Whoever runs what is claimed."""

    held: dict[str, Assignment]
    draining: bool

    @property
    def lease_ms(self) -> int:
        """How long a claim shall last without a renewal."""

    def accept(self, claim: Claim) -> None:
        """Runs it."""

    async def refuse(self, claim: Claim) -> None:
        """Gives it back at once."""

    async def hand_back(self, runs: list[Assignment]) -> None:
        """Releases all of these that are not ending already."""

    def redis_failed(self, error: Unavailable) -> None:
        """Redis could not be asked."""

    def redis_answered(self) -> None:
        """It could."""


class Claiming:
    """Claims for one worker. `run` forever, beside `listen`; `wake` it when there may be room that was not there."""

    def __init__(self, queue: Queue, owner: Owner, holder: Holder, engine: Engine, block_size: int):
        self._queue = queue
        self._owner = owner
        self._holder = holder
        self._engine = engine
        self._block_size = block_size
        self._clearing = Clearing(queue, owner)
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._after = 0.0

    def wake(self) -> None:
        """Something may be there to claim, or room for it."""
        self._wake.set()

    def pause(self) -> None:
        """Others shall have the next claims."""
        self._after = self._loop.time() + MISMATCH_PAUSE_S

    async def listen(self) -> None:
        """Wakes at every ring, and now and then without one."""
        async with self._queue.bell() as bell:
            while True:
                await bell.wait(random.uniform(0.8, 1.2) * POLL_S)
                self._wake.set()

    async def run(self) -> None:
        """Claims until the worker drains."""
        while not self._holder.draining:
            await self._wake.wait()
            self._wake.clear()
            try:
                while await self._claim_some():
                    pass
            except Unavailable as error:
                self._holder.redis_failed(error)

    async def end(self) -> None:
        """Gives back what calls still bring that were under way when the worker began to drain."""
        for claim in await self._queue.rest_of_claims(self._owner):
            await self._holder.refuse(claim)

    async def _claim_some(self) -> bool:
        """One claim; whether another may find more."""
        holder = self._holder
        # What only waits for its router, up to half a minute, runs no more: it must not keep others from running alone.
        runs = [assignment for assignment in holder.held.values() if not assignment.outbound.ended]
        num = await self._wanted(runs)
        # Twice what is free: few requests use all the tokens they may.
        most = 2 * self._engine.stats().free_blocks * self._block_size
        claims = await self._queue.claim(self._owner, num, solo=not runs, lease_ms=holder.lease_ms, max_cost=most)
        if num:
            holder.redis_answered()
        if claims:
            crash.point("worker.claimed")
        # A shard that was slow may answer with what must run alone when others have answered meanwhile.
        beside = bool(runs) or len(claims) > 1
        for claim in claims:
            if holder.draining or (claim.solo and beside):
                await holder.refuse(claim)
            else:
                holder.accept(claim)
        return 0 < num == len(claims)

    async def _wanted(self, runs: list[Assignment]) -> int:
        """How many to claim; none still asks for what a slow shard has answered meanwhile."""
        holder = self._holder
        if holder.draining or self._loop.time() < self._after or any(each.needs_all for each in runs):
            return 0
        if runs and await self._clearing.wanted():
            if self._clearing.overdue:
                await holder.hand_back(runs)
            return 0
        stats = self._engine.stats()
        num = min(CLAIM_AT_ONCE, stats.room)
        if num > 0:
            await asyncio.sleep(YIELD_S * stats.running / (stats.running + stats.room))
        return max(0, num)
