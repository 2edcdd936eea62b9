"""The queue as routers and workers call it: one method per script of reference/protocol.md §3, plus reads.

Every method may be repeated after a lost reply, answers the truth, and raises Unavailable(code="queue_unavailable") when Redis
cannot be asked. It knows nothing of payload contents, of streams or of who is right: the scripts decide.
"""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from math import inf
from typing import Any, cast

from redis.asyncio import Redis

from shared.errors import InvalidRequest, NotFound, RateLimited, Unavailable
from shared.queue.bell import Bell
from shared.queue.connection import check_server, redis_errors
from shared.queue.scripts import Scripts
from shared.queue.types import (
    Answer,
    CancelReason,
    Claim,
    Found,
    Held,
    Known,
    Limits,
    Load,
    NewRequest,
    Outcome,
    Owner,
    Reaped,
    Record,
    Renewal,
    RenewVerdict,
    State,
    Timings,
    Verdict,
)

REAP_BATCH = 100


class Queue:
    """One shard of one model's queue. Call `load` once before anything else."""

    def __init__(self, redis: Redis, *, model: str, shard: int = 0, limits: Limits | None = None, timings: Timings | None = None):
        """`redis` from connection.connect; model must not hold braces, which delimit the hash tag."""
        if "{" in model or "}" in model:
            raise ValueError(f"model name {model!r} holds a brace")
        self.prefix = f"rt:{{{model}/{shard}}}:"
        self.limits = limits or Limits()
        self.timings = timings or Timings()
        self._redis = redis
        self._scripts = Scripts(redis, self.prefix)
        self._run_id = ""
        self._quiet_until = -inf

    async def load(self) -> None:
        """Loads the scripts. Raises Unavailable for no server, StartupError for one that is too old, evicts or refuses us."""
        async with self._asking():
            await check_server(self._redis)
            await self._scripts.load()

    async def put(self, request: NewRequest, *, attach: int | None = None, known: Known | None = None) -> Answer:
        """Creates the record if there is none (verdict "ok"), else leaves it alone ("exists").

        attach None: a first put, which limits apply to. attach given: a router puts back what Redis forgot, never refused;
        `known` then restores a healthy owner as running. Raises RateLimited (tenant over its limit), Unavailable (code
        "overloaded" or "queue_full"), both with retry_after_s, and InvalidRequest (idempotency_key_reused).
        """
        return await self._put(request, attach=attach or 0, first=attach is None, known=known or Known())

    async def _put(self, request: NewRequest, *, attach: int, first: bool, known: Known) -> Answer:
        reply = await self._run(
            "put",
            *_body(request),
            request.router_id,
            attach,
            int(first),
            str(known.owner or ""),
            known.epoch,
            known.crashes,
            known.progress,
            request.weight,
            self.timings.lease_ms,
            self.timings.affinity_ms,
            self.limits.max_requests,
            self.limits.max_tokens,
            self.limits.max_tenant_requests,
            self.limits.max_tenant_tokens,
        )
        verdict = reply[0]
        if verdict == b"overloaded":
            raise Unavailable("Too many requests are waiting; try again later.", retry_after_s=int(reply[1]) / 1000)
        if verdict == b"limited":
            raise RateLimited("You have too much under way; wait for some of it to end.", retry_after_s=int(reply[1]) / 1000)
        if verdict == b"reused":
            raise InvalidRequest("This idempotency key was used for a different request.", code="idempotency_key_reused")
        return _answer(reply)

    async def claim(
        self, owner: Owner, k: int, *, solo: bool = False, lease_ms: int | None = None, max_cost: int | None = None
    ) -> list[Claim]:
        """Up to k requests this worker can start now, best first.

        solo: the worker is otherwise empty; then it may get one request that must run alone (Claim.solo), and nothing beside it.
        max_cost: stop at the first request that would take the sum of num_tokens above this; on an empty worker
        (solo=True) the first one always fits. Requests past their deadline are ended on the way.
        """
        lease = lease_ms or self.timings.lease_ms
        cost = -1 if max_cost is None else max_cost
        reply = await self._run("claim", owner, k, int(solo), lease, cost, self.timings.retain_ms)
        return [_claim(line) for line in reply]

    async def reserve(self, owner: Owner) -> bool:
        """Whether this busy worker must claim nothing more until it is empty: what must run alone has waited too long.

        At most one worker is told so at a time; it asks again, and goes on with other work, when this is over.
        """
        return bool(await self._run("reserve", owner, self.timings.solo_wait_ms, self.timings.solo_hold_ms))

    async def renew(self, owner: Owner, held: Sequence[Held], *, lease_ms: int | None = None) -> list[Renewal]:
        """Extends the leases of all that this worker holds, in one call; call it only after a finished step or an idle tick."""
        flat = [value for line in held for value in (line.rid, line.epoch, line.attach, line.progress)]
        reply = await self._run("renew", owner, lease_ms or self.timings.lease_ms, *flat)
        return [
            Renewal(line.rid, cast(RenewVerdict, verdict.decode()), router.decode(), int(attach))
            for line, (verdict, router, attach) in zip(held, reply, strict=True)
        ]

    async def revoke(self, router_id: str, rid: str, owner: Owner, epoch: int, progress: int = 0) -> Answer:
        """The stream to that owner broke and was not re-dialled: its lease ends now. "refused" if it is not the owner.

        progress: output tokens over all choices that this router has.
        """
        return _answer(await self._run("revoke", rid, router_id, owner, epoch, progress))

    async def release(self, owner: Owner, rid: str, epoch: int, floor: int = 0, progress: int = 0) -> Answer:
        """Hands a request back to the front of the queue; floor is the epoch of a Fenced answer. Else "refused".

        progress: as in a renewal; a request that is past the token of its last crash need not run alone any more.
        """
        return _answer(await self._run("release", rid, owner, epoch, floor, progress))

    async def finish(
        self,
        owner: Owner,
        rid: str,
        epoch: int,
        attach: int,
        outcome: Outcome,
        *,
        tenant: str,
        usage: bytes = b"",
        reason: str = "",
    ) -> Answer:
        """Ends a request once: "ok", "moved" (dial the new router instead) or "refused" (drop the sequence).

        usage is stored once whatever happens (Answer.booked). reason of a cancelled outcome: "client" is final, "disconnect" and
        "orphan" may be revived. Works when Redis is full, and when Redis forgot the request.
        """
        retain = self.timings.retain_ms
        return _answer(await self._run("finish", rid, owner, epoch, attach, outcome, reason, tenant, usage, retain))

    async def cancel(self, rid: str, *, tenant: str, router_id: str, attach: int, why: CancelReason) -> Answer:
        """Cancels by exact rid. Raises NotFound when it is another tenant's.

        "client": "ok", or "refused" with state done or dead; a missing one is recorded as cancelled.
        "disconnect": "ok", or "refused"/"missing" when the client is no longer at (router_id, attach).
        """
        return _own(await self._run("cancel", rid, tenant, router_id, attach, why, self.timings.retain_ms), rid)

    async def adopt(
        self,
        rid: str,
        *,
        tenant: str,
        router_id: str,
        attach: int | None = None,
        request: NewRequest | None = None,
        known: Known | None = None,
    ) -> Answer:
        """Moves a request to the router its client came back to; "ok" answers the attach to use.

        attach None: a fresh one. attach given (reconcile): wins only over a smaller one, else "superseded". A done or
        revivable request is queued again; `request` is its body where the client sent it, used when Redis forgot it.
        Raises NotFound when it is another tenant's. Other verdicts: "missing", "gone", "ended".
        """
        body = _body(request) if request else (rid, tenant, 0, 0, 0, "", "", b"")
        answer = _own(await self._run("adopt", *body, tenant, router_id, attach or 0), rid)
        if answer.verdict == "missing" and request:
            return await self._put(request, attach=attach or 0, first=False, known=known or Known())
        return answer

    async def reap(self) -> Reaped:
        """Requeues what has lost its owner, proves or clears suspects, ends what passed its deadline unclaimed.

        Every router calls it about every 500 ms, jittered. It holds still for one lease and one renewal after Redis was
        unreachable or another server answers: then every lease looks expired and none is.
        """
        async with self._asking():
            run_id = (await self._redis.info("server"))["run_id"]
        if run_id != self._run_id:
            if self._run_id:
                self._be_quiet()
            self._run_id = run_id
        if time.monotonic() < self._quiet_until:
            return Reaped(quiet=True)
        timings = self.timings
        reply = await self._run("reap", REAP_BATCH, timings.hold_ms, timings.retain_ms, timings.quarantine_ms)
        return Reaped(int(reply[0]), int(reply[1]), tuple(rid.decode() for rid in reply[2]))

    async def seen(self, owner: Owner) -> None:
        """This boot lives; a side thread of the worker says so every second."""
        await self._run("seen", owner, 0)

    async def exited(self, owner: Owner) -> None:
        """This boot is gone for sure (its parent saw it exit): what it held counts as crashed without waiting."""
        await self._run("seen", owner, 1)

    async def read(self, rids: Sequence[str]) -> dict[str, Record | None]:
        """The records as they stand, all at one moment; None where Redis has none."""
        if not rids:
            return {}
        reply = await self._run("read", *rids)
        return {rid: _record(rid, line) for rid, line in zip(rids, reply, strict=True)}

    async def look(self, rid: str) -> Found | None:
        """Everything of one record, for a client that has only its rid; None if there is none."""
        reply = await self._run("look", rid)
        return _found(rid, reply) if reply else None

    async def dead(self) -> list[tuple[str, float]]:
        """The dead letters: rid and when it died, seconds since 1970, oldest first."""
        async with self._asking():
            found = await cast(Any, self._redis.zrange(self.prefix + "dead", 0, -1, withscores=True))
        return [(rid.decode(), at / 1e6) for rid, at in found]

    async def pardon(self, rid: str) -> Answer:
        """A dead letter may run again, once its client comes back with its key or its rid. "refused" if it is none."""
        return _answer(await self._run("pardon", rid, self.timings.retain_ms))

    async def discard(self, rid: str) -> Answer:
        """A dead letter and its prompt are gone. "refused" if it is none."""
        return _answer(await self._run("discard", rid))

    async def measure(self) -> Load:
        """What waits, and how fast workers take it."""
        async with self._asking():
            num, tokens, rate = await cast(Any, self._redis.hmget(self.prefix + "load", ["num", "tokens", "rate"]))
        return Load(int(num or 0), int(tokens or 0), float(rate or 0))

    def bell(self) -> Bell:
        """A connection of its own that wakes when something is put; `async with queue.bell() as bell: await bell.wait(s)`."""
        return Bell(self._redis, self.prefix + "bell")

    async def _run(self, name: str, *args: object) -> Any:
        async with self._asking():
            return await self._scripts.run(name, args)

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[None]:
        try:
            async with redis_errors():
                yield
        except Unavailable as error:
            if error.code == "queue_unavailable":
                self._be_quiet()
            raise

    def _be_quiet(self) -> None:
        self._quiet_until = time.monotonic() + 1.25 * self.timings.lease_ms / 1000


def _body(request: NewRequest) -> tuple[object, ...]:
    warm_key = request.warm_key.hex() if request.warm_key else ""
    deadline_ms = 0 if request.deadline_ms is None else max(request.deadline_ms, 1)
    shape = (request.band, request.num_tokens, deadline_ms)
    return request.rid, request.tenant, *shape, request.digest, warm_key, request.payload


def _answer(reply: list[bytes]) -> Answer:
    verdict, state, epoch, owner, router, attach, reason, booked = (value.decode() for value in reply)
    return Answer(cast(Verdict, verdict), cast(State, state), int(epoch), owner, router, int(attach), reason, booked == "1")


def _own(reply: list[bytes], rid: str) -> Answer:
    if reply[0] == b"foreign":
        raise NotFound(f"There is no request {rid}.")
    return _answer(reply)


def _claim(line: list[bytes]) -> Claim:
    rid, epoch, router, attach, payload, left, band, tag, tenant, cost, crashes, died_at, solo = line
    return Claim(
        rid=rid.decode(),
        epoch=int(epoch),
        router=router.decode(),
        attach=int(attach),
        payload=payload,
        deadline_ms_left=None if left == b"-1" else int(left),
        band=int(band),
        tag=float(tag),
        tenant=tenant.decode(),
        num_tokens=int(cost),
        crashes=int(crashes),
        died_at=int(died_at),
        solo=solo == b"1",
    )


def _found(rid: str, reply: list[Any]) -> Found:
    answer = _answer(reply[0])
    tenant, payload, digest, cost, band, left, warm_key, crashes, revivable = reply[1:]
    request = NewRequest(
        rid=rid,
        router_id=answer.router,
        tenant=tenant.decode(),
        payload=payload,
        digest=digest.decode(),
        num_tokens=int(cost),
        band=int(band),
        deadline_ms=None if left == b"-1" else int(left),
        warm_key=bytes.fromhex(warm_key.decode()) or None,
    )
    return Found(answer, request, int(crashes), revivable == b"1")


def _record(rid: str, line: list[bytes | None]) -> Record | None:
    if line[0] is None:
        return None
    state, epoch, owner, router, attach, revivable, crashes, counted, reason, tenant, usage = (value or b"" for value in line)
    return Record(
        rid=rid,
        state=cast(State, state.decode()),
        epoch=int(epoch or 0),
        owner=owner.decode(),
        router=router.decode(),
        attach=int(attach or 0),
        revivable=revivable == b"1",
        crashes=int(crashes or 0),
        counted=counted == b"1",
        reason=reason.decode(),
        tenant=tenant.decode(),
        usage=usage,
    )
