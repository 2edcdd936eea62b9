"""Claims requests while the engine has room, keeps their leases, and carries out what their routers decide. Protocol §5.

Claims are woken by the bell and by the poll; leases are renewed from the engine's loop, after a finished step or on an
idle tick, so a stuck step never renews. While Redis cannot be asked, what runs goes on and nothing new is claimed.
It knows nothing of tensors, of text, or of how bytes travel.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from services.worker.assignment import Assignment, accept
from services.worker.clearing import Clearing
from services.worker.delivery import Delivery
from services.worker.engine.engine import Delta, Engine
from services.worker.engine.step import RunnerLimits
from services.worker.outbound import Outbound, accepted_ids
from shared import crash
from shared.errors import Unavailable
from shared.mtls import Peer
from shared.pb import delivery_pb2, types_pb2
from shared.queue.client import Queue
from shared.queue.payload import BadPayload
from shared.queue.registry import Registry
from shared.queue.types import Answer, Claim, Held, Outcome, Owner, Renewal
from shared.tasks import end_tasks

GRACE_S = 30.0
POLL_S, CLAIM_AT_ONCE = 0.25, 8
# A busy worker leaves a ring to an idler one for up to this long.
YIELD_S = 0.01
MISMATCH_PAUSE_S = 0.5
LEASE_STEPS, RETRY_S, MAX_RETRY_S = 3, 0.1, 1.0

logger = logging.getLogger(__name__)


class Consumer:
    """All assignments of one worker. Everything but `on_step` and `on_tick` is called on its event loop.

    step_s: about how long the longest step takes; a lease outlasts some of them. peer: what routers are dialled with.
    on_fatal: told of an error that nothing here can mend; the process should end.
    """

    def __init__(
        self,
        queue: Queue,
        registry: Registry,
        owner: Owner,
        keys: Sequence[bytes],
        limits: RunnerLimits,
        *,
        on_fatal: Callable[[BaseException], None],
        step_s: float = 0.0,
        grace_s: float = GRACE_S,
        peer: Peer | None = None,
    ):
        self.held: dict[str, Assignment] = {}
        self.draining = False
        self.num_bad_payloads = 0
        self.num_protocol_errors = 0
        self.reaches_redis = True
        self._queue = queue
        self._registry = registry
        self._owner = owner
        self._keys = keys
        self._limits = limits
        self._on_fatal = on_fatal
        self._grace_s = grace_s
        self._clearing = Clearing(queue, owner)
        self._delivery = Delivery(owner, limits.fingerprint, self._resolve, self, peer)
        self._loop = asyncio.get_running_loop()
        self._engine: Engine
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._least_lease_s = max(queue.timings.lease_ms / 1000, LEASE_STEPS * step_s)
        self._lease_s = self._least_lease_s
        self._renew_at = 0.0
        self._renewing: asyncio.Task[None] | None = None
        self._claim_after = 0.0

    def start(self, engine: Engine) -> None:
        """Begins to claim for `engine`, whose callbacks are this object's."""
        self._engine = engine
        self._spawn(self._listen())
        self._spawn(self._claim_always())

    async def drain(self, grace_s: float) -> None:
        """Claims nothing more; returns when all has ended, or after grace_s, when the rest is handed back."""
        self.draining = True
        end = self._loop.time() + grace_s
        while self.held and self._loop.time() < end:
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), min(1.0, max(0.0, end - self._loop.time())))
        await self._hand_back(list(self.held.values()))

    async def close(self) -> None:
        """Ends tasks and connections; the engine must have stopped."""
        await end_tasks(list(self._tasks))
        await self._delivery.close()

    # Called on the engine thread.

    def on_step(self, deltas: list[Delta]) -> None:
        """Hands a step's tokens to the event loop."""
        self._loop.call_soon_threadsafe(self._deliver, deltas)

    def on_tick(self) -> None:
        """Asks for a renewal a quarter of a lease after the last."""
        now = time.monotonic()
        if now >= self._renew_at:
            self._renew_at = now + self._lease_s / 4
            self._loop.call_soon_threadsafe(self._renew_soon)

    # Claiming.

    async def _listen(self) -> None:
        async with self._queue.bell() as bell:
            while True:
                await bell.wait(random.uniform(0.8, 1.2) * POLL_S)
                self._wake.set()

    async def _claim_always(self) -> None:
        while not self.draining:
            await self._wake.wait()
            self._wake.clear()
            try:
                while await self._claim_some():
                    pass
                self._redis_answered()
            except Unavailable as error:
                self._redis_failed(error)

    async def _claim_some(self) -> bool:
        """One claim; whether another may find more."""
        if self.draining or self._loop.time() < self._claim_after or any(each.is_suspect for each in self.held.values()):
            return False
        # What only waits for its router, up to half a minute, runs no more: it must not keep others from running alone.
        runs = [assignment for assignment in self.held.values() if not assignment.outbound.ended]
        if runs and await self._clearing.wanted():
            return self._clearing.overdue and await self._hand_back(runs)
        stats = self._engine.stats()
        if (num := min(CLAIM_AT_ONCE, stats.room)) < 1:
            return False
        await asyncio.sleep(YIELD_S * stats.running / (stats.running + stats.room))
        # Twice what is free: few requests use all the tokens they may.
        most = 2 * stats.free_blocks * self._limits.block_size
        claims = await self._queue.claim(self._owner, num, solo=not runs, lease_ms=self._lease_ms, max_cost=most)
        if claims:
            crash.point("worker.claimed")
        for claim in claims:
            if self.draining:
                await self._queue.release(self._owner, claim.rid, claim.epoch)
            else:
                self._accept(claim)
        return len(claims) == num

    @property
    def _lease_ms(self) -> int:
        return int(self._lease_s * 1000)

    def _accept(self, claim: Claim) -> None:
        if (old := self.held.get(claim.rid)) is not None:
            self._drop(old)
        try:
            assignment = accept(claim, self._keys, self._limits, self._loop.time())
        except BadPayload as error:
            self.num_bad_payloads += 1
            logger.error("refused a payload that is not ours", extra={"rid": claim.rid, "cause": error.message})
            self._spawn(self._tell(claim, claim.attach, "failed", b"", error.code or ""))
            return
        self.held[claim.rid] = assignment
        outbound = assignment.outbound
        logger.info("claimed", extra={"rid": claim.rid, "epoch": claim.epoch, "num_prompt_tokens": len(outbound.work.prompt)})
        if outbound.failure is None:
            self._engine.submit(outbound.work)
        self._delivery.attach(outbound)

    async def _tell(self, claim: Claim, attach: int, outcome: Outcome, usage: bytes, reason: str) -> Answer:
        """Redis's answer to a finish, asked until there is one."""
        wait_s = RETRY_S
        while True:
            try:
                return await self._queue.finish(
                    self._owner, claim.rid, claim.epoch, attach, outcome, tenant=claim.tenant, usage=usage, reason=reason
                )
            except Unavailable as error:
                self._redis_failed(error)
            await asyncio.sleep(random.uniform(0.5, 1.0) * wait_s)
            wait_s = min(MAX_RETRY_S, 2 * wait_s)

    # From the engine.

    def _deliver(self, deltas: list[Delta]) -> None:
        crash.point("worker.step")
        for delta in deltas:
            assignment = self.held.get(delta.work.key[0])
            if assignment is None or assignment.outbound.work is not delta.work:
                continue
            assignment.outbound.extend(delta)
            self._delivery.touch(assignment.outbound)
            if delta.finish is not None or assignment.claim.solo:
                self._wake.set()

    # Decisions of routers.

    def begin(self, outbound: Outbound, begin: delivery_pb2.Begin) -> None:
        """Goes on from what the router accepted, or hands the request on if other numerics made that."""
        assignment = self._of(outbound)
        if assignment is None or assignment.ending:
            return
        if begin.fingerprint and begin.fingerprint != self._limits.fingerprint:
            logger.warning("made with other numerics; handing it on", extra={"rid": outbound.rid, "theirs": begin.fingerprint})
            self._claim_after = self._loop.time() + MISMATCH_PAUSE_S
            self._end(assignment, self._release(assignment, 0))
            return
        crash.point("worker.begun")
        assignment.waits_since = None
        differs = outbound.begin(accepted_ids(begin, self._limits.vocab_size))
        if outbound.failure is not None:
            outbound.fail(outbound.failure)
        elif differs:
            self._engine.submit(outbound.restart())
        if outbound.paused:
            self.paused(outbound, False)

    def finished(self, outbound: Outbound, usage: types_pb2.Usage) -> None:
        """Delivered whole."""
        if (assignment := self._of(outbound)) is not None:
            self._end(assignment, self._finish(assignment, "done", usage, ""))

    def cancelled(self, outbound: Outbound) -> None:
        """Drops the sequence at once, and says so in Redis; a client that asked for it has made it final there."""
        if (assignment := self._of(outbound)) is not None and not assignment.ending:
            self._engine.cancel(outbound.work.key)
            self._end(assignment, self._finish(assignment, "cancelled", outbound.usage(), "disconnect"))

    def fenced(self, outbound: Outbound, floor: int) -> None:
        """Another owns it: drops it, and repairs the record if that still names this worker."""
        if (assignment := self._of(outbound)) is not None:
            self._end(assignment, self._release(assignment, floor))

    def stopped(self, outbound: Outbound, choice: int, num_tokens: int) -> None:
        """Ends one choice where its stop string ended."""
        outbound.stop(choice, num_tokens)
        self._engine.stop_choice(outbound.work.key, choice, num_tokens)

    def paused(self, outbound: Outbound, paused: bool) -> None:
        """Stops or goes on computing one request."""
        outbound.paused = paused
        (self._engine.pause if paused else self._engine.resume)(outbound.work.key)

    def _of(self, outbound: Outbound) -> Assignment | None:
        assignment = self.held.get(outbound.rid)
        return assignment if assignment is not None and assignment.outbound is outbound else None

    def _end(self, assignment: Assignment, telling: Coroutine[Any, Any, None]) -> None:
        if assignment.ending:
            telling.close()
            return
        assignment.ending = True
        self._spawn(telling)

    async def _finish(self, assignment: Assignment, outcome: Outcome, usage: types_pb2.Usage, reason: str) -> None:
        outbound = assignment.outbound
        crash.point("worker.finishing")
        answer = await self._tell(assignment.claim, outbound.attach, outcome, usage.SerializeToString(), reason)
        crash.point("worker.finished")
        if answer.verdict != "moved" or self._of(outbound) is None:
            logger.info("ended", extra={"rid": assignment.rid, "outcome": outcome, "verdict": answer.verdict, "reason": reason})
            self._drop(assignment)
        elif reason == "disconnect":
            await self._release(assignment, 0)
        else:
            assignment.ending = False
            self._retarget(assignment, answer.router, answer.attach)

    async def _release(self, assignment: Assignment, floor: int) -> None:
        """Drops the sequence and hands the request back; if Redis cannot be asked now, the lease runs out by itself."""
        self._drop(assignment)
        crash.point("worker.releasing")
        try:
            await self._queue.release(self._owner, assignment.rid, assignment.claim.epoch, floor, assignment.outbound.num_tokens)
        except Unavailable as error:
            self._redis_failed(error)

    async def _hand_back(self, runs: list[Assignment]) -> bool:
        """Releases all of these that are not ending already; whether there were any."""
        left = [assignment for assignment in runs if not assignment.ending]
        for assignment in left:
            assignment.ending = True
        if left:
            logger.info("handing back what still runs", extra={"num_requests": len(left)})
        await asyncio.gather(*(self._release(assignment, 0) for assignment in left))
        return bool(left)

    def _drop(self, assignment: Assignment) -> None:
        """Forgets it: blocks freed, nothing sent."""
        if self.held.get(assignment.rid) is assignment:
            del self.held[assignment.rid]
        self._engine.cancel(assignment.outbound.work.key)
        self._delivery.detach(assignment.outbound)
        self._wake.set()

    def _retarget(self, assignment: Assignment, router: str, attach: int) -> None:
        """Its client is at `router` now: claims it there."""
        outbound = assignment.outbound
        logger.info("client moved", extra={"rid": assignment.rid, "router": router})
        self._delivery.detach(outbound)
        outbound.router, outbound.attach = router, attach
        assignment.waits_since = self._loop.time()
        self._delivery.attach(outbound)

    # Leases.

    def _renew_soon(self) -> None:
        if self._renewing is None or self._renewing.done():
            self._renewing = self._spawn(self._renew())

    async def _renew(self) -> None:
        self._lease_s = max(self._least_lease_s, self._engine.stats().stall_limit_s)
        asked = [assignment for assignment in self.held.values() if not assignment.ending]
        lines = [Held(each.rid, each.claim.epoch, each.outbound.attach, each.outbound.num_tokens) for each in asked]
        if asked:
            try:
                renewals = await self._queue.renew(self._owner, lines, lease_ms=self._lease_ms)
                self._redis_answered()
                crash.point("worker.renewed")
                for assignment, line, renewal in zip(asked, lines, renewals, strict=True):
                    self._judge(assignment, line, renewal)
            except Unavailable as error:
                self._redis_failed(error)
        self._find_orphans()

    def _judge(self, assignment: Assignment, line: Held, renewal: Renewal) -> None:
        outbound = assignment.outbound
        if self._of(outbound) is None or assignment.ending or outbound.attach != line.attach:
            return
        if renewal.verdict in ("lost", "cancelled"):
            logger.info("dropped", extra={"rid": assignment.rid, "verdict": renewal.verdict})
            self._drop(assignment)
        elif renewal.verdict == "ok" and (renewal.router, renewal.attach) != (outbound.router, outbound.attach):
            self._retarget(assignment, renewal.router, renewal.attach)

    def _find_orphans(self) -> None:
        """Those whose router has not answered Begin for the grace end cancelled, for a returning client to revive."""
        now = self._loop.time()
        for assignment in list(self.held.values()):
            outbound = assignment.outbound
            if now > assignment.expires_at and not assignment.ending:
                self._engine.cancel(outbound.work.key)
                self._end(assignment, self._finish(assignment, "failed", outbound.usage(), "deadline"))
            if assignment.ending or outbound.begun:
                continue
            if assignment.waits_since is None:
                assignment.waits_since = now
            if now - assignment.waits_since < self._grace_s:
                continue
            logger.warning("nobody listens; giving up", extra={"rid": assignment.rid, "router": outbound.router})
            if self.reaches_redis:
                self._end(assignment, self._finish(assignment, "cancelled", outbound.usage(), "orphan"))
            else:
                self._drop(assignment)

    # The world outside.

    async def _resolve(self, router_id: str) -> str | None:
        """Where that router can be dialled; None if the registry does not know or cannot be asked."""
        try:
            facts = await self._registry.router(router_id)
        except Unavailable as error:
            self._redis_failed(error)
            return None
        return facts.deliver_address if facts is not None else None

    def _redis_failed(self, error: Unavailable) -> None:
        if self.reaches_redis:
            logger.warning("Redis cannot be asked; what runs goes on", extra={"cause": error.code})
        self.reaches_redis = False

    def _redis_answered(self) -> None:
        if not self.reaches_redis:
            logger.info("Redis answers again")
        self.reaches_redis = True

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_fatal(error)
