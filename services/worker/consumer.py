"""Runs what is claimed, keeps its leases, and carries out what its routers decide. Protocol §5.

Leases are renewed from the engine's loop, after a finished step or on an idle tick, so a stuck step never renews. While
Redis cannot be asked, what runs goes on. It knows nothing of tensors, of text, of when to claim, or of how bytes travel.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from services.worker.assignment import Assignment, assignment_of
from services.worker.claiming import Claiming
from services.worker.delivery import Delivery
from services.worker.engine.engine import Delta, Engine
from services.worker.engine.step import RunnerLimits
from services.worker.outbound import Outbound, accepted_ids
from services.worker.readying import Readying
from shared import crash
from shared.errors import Unavailable
from shared.mtls import Peer
from shared.pb import delivery_pb2, types_pb2
from shared.queue.client import Queue
from shared.queue.payload import BadPayload
from shared.queue.registry import Registry
from shared.queue.types import Answer, Claim, Held, Outcome, Owner, Renewal
from shared.tasks import end_tasks

# How long a sequence whose router is gone goes on for a client that may come back.
GRACE_S = 30.0
# A lease outlasts so many of the longest steps.
LEASE_STEPS = 3
# Between two tries to tell Redis of an end.
RETRY_S = 0.1
MAX_RETRY_S = 1.0

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
        self._delivery = Delivery(owner, limits.fingerprint, self._resolve, self, peer)
        self._loop = asyncio.get_running_loop()
        self._engine: Engine
        self._claiming: Claiming
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._least_lease_s = max(queue.timings.lease_ms / 1000, LEASE_STEPS * step_s)
        self._lease_s = self._least_lease_s
        self._renew_at = 0.0
        self._renewing: asyncio.Task[None] | None = None

    def start(self, engine: Engine) -> None:
        """Begins to claim for `engine`, whose callbacks are this object's."""
        self._engine = engine
        self._readying = Readying(engine, lambda outbound: self._of(outbound) is not None, self._delivery.touch)
        self._claiming = Claiming(self._queue, self._owner, self, engine, self._limits.block_size)
        self._spawn(self._claiming.listen())
        self._spawn(self._claiming.run())

    async def drain(self, grace_s: float) -> None:
        """Claims nothing more; returns when all has ended, or after grace_s, when the rest is handed back."""
        self.draining = True
        end = self._loop.time() + grace_s
        while self.held and self._loop.time() < end:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), min(1.0, max(0.0, end - self._loop.time())))
        await asyncio.gather(self.hand_back(list(self.held.values())), self._claiming.end())

    async def close(self) -> None:
        """Ends tasks and connections; the engine must have stopped."""
        await end_tasks(list(self._tasks))
        self._readying.close()
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

    # Claims.

    @property
    def lease_ms(self) -> int:
        """How long what is claimed or renewed now is this worker's."""
        return int(self._lease_s * 1000)

    def accept(self, claim: Claim) -> None:
        """Runs what was claimed; the assignment it had of the same request is over."""
        if (old := self.held.get(claim.rid)) is not None:
            self._drop(old)
        try:
            assignment = assignment_of(claim, self._keys, self._limits, self._loop.time())
        except BadPayload as error:
            self.num_bad_payloads += 1
            logger.error("refused a payload that is not ours", extra={"rid": claim.rid, "cause": error.message})
            self._spawn(self._tell(claim, claim.attach, "failed", b"", error.code or ""))
            return
        self.held[claim.rid] = assignment
        outbound = assignment.outbound
        logger.info("claimed", extra={"rid": claim.rid, "epoch": claim.epoch, "num_prompt_tokens": len(outbound.work.prompt)})
        if outbound.failure is None:
            self._readying.submit(outbound)
        self._delivery.attach(outbound)

    async def refuse(self, claim: Claim) -> None:
        """Gives a claim back that was never begun."""
        await self._queue.release(self._owner, claim.rid, claim.epoch)

    async def _tell(self, claim: Claim, attach: int, outcome: Outcome, usage: bytes, reason: str) -> Answer:
        """Redis's answer to a finish, asked until there is one."""
        wait_s = RETRY_S
        while True:
            try:
                return await self._queue.finish(
                    self._owner, claim.rid, claim.epoch, attach, outcome, tenant=claim.tenant, usage=usage, reason=reason
                )
            except Unavailable as error:
                self.redis_failed(error)
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
                self._claiming.wake()

    # Decisions of routers.

    def begin(self, outbound: Outbound, begin: delivery_pb2.Begin) -> None:
        """Goes on from what the router accepted, or hands the request on if other numerics made that."""
        assignment = self._of(outbound)
        if assignment is None or assignment.ending:
            return
        if begin.fingerprint and begin.fingerprint != self._limits.fingerprint:
            logger.warning("made with other numerics; handing it on", extra={"rid": outbound.rid, "theirs": begin.fingerprint})
            self._claiming.pause()
            self._end(assignment, self._release(assignment, 0))
            return
        crash.point("worker.begun")
        assignment.waits_since = None
        differs = outbound.begin(accepted_ids(begin, self._limits.vocab_size))
        if outbound.failure is not None:
            outbound.fail(outbound.failure)
        elif differs:
            self._readying.restart(outbound)
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
        assignment = self._of(outbound)
        if not paused and assignment is not None and assignment.needs_all and self._others_run(assignment):
            # Others came while it stood still, and nothing that is under suspicion may run beside them.
            self._end(assignment, self._release(assignment, 0))
            return
        (self._engine.pause if paused else self._engine.resume)(outbound.work.key)

    def _others_run(self, assignment: Assignment) -> bool:
        return any(each is not assignment and not each.outbound.ended for each in self.held.values())

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
            logger.info("handed back", extra={"rid": assignment.rid})
        except Unavailable as error:
            self.redis_failed(error)

    async def hand_back(self, runs: list[Assignment]) -> None:
        """Releases all of these that are not ending already."""
        left = [assignment for assignment in runs if not assignment.ending]
        for assignment in left:
            assignment.ending = True
        if left:
            logger.info("handing back what still runs", extra={"num_requests": len(left)})
        await asyncio.gather(*(self._release(assignment, 0) for assignment in left))

    def _drop(self, assignment: Assignment) -> None:
        """Forgets it: blocks freed, nothing sent."""
        if self.held.get(assignment.rid) is assignment:
            del self.held[assignment.rid]
        self._engine.cancel(assignment.outbound.work.key)
        self._delivery.detach(assignment.outbound)
        self._changed.set()
        self._claiming.wake()

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
                renewals = await self._queue.renew(self._owner, lines, lease_ms=self.lease_ms)
                self.redis_answered()
                crash.point("worker.renewed")
                for assignment, line, renewal in zip(asked, lines, renewals, strict=True):
                    self._judge(assignment, line, renewal)
            except Unavailable as error:
                self.redis_failed(error)
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
            self.redis_failed(error)
            return None
        return facts.deliver_address if facts is not None else None

    def redis_failed(self, error: Unavailable) -> None:
        """Redis could not be asked; says so once."""
        if self.reaches_redis:
            logger.warning("Redis cannot be asked; what runs goes on", extra={"cause": error.code})
        self.reaches_redis = False

    def redis_answered(self) -> None:
        """Redis could be asked; says so after it could not."""
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
