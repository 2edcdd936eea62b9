"""The queue as routers and workers call it: one method per script of reference/protocol.md §3, plus reads.

A queue has one shard or several, each wholly in one slot of a cluster; a rid names its own. Every method may be repeated after
a lost reply, answers the truth, and raises Unavailable(code="queue_unavailable") when Redis cannot be asked; what concerns all
shards is done with those that answer. It knows nothing of payload contents, of streams or of who is right: the scripts decide.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

from shared.errors import InvalidRequest, RateLimited, Unavailable
from shared.queue.bell import Bell
from shared.queue.claims import Claims
from shared.queue.connection import Client, check_server, redis_errors
from shared.queue.replies import answer_of, body_of, claim_of, found_of, own_answer, record_of
from shared.queue.rid import shard_of
from shared.queue.scripts import Scripts
from shared.queue.shard import Shard
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
    Timings,
)

REAP_BATCH = 100

Reply = TypeVar("Reply")
Thing = TypeVar("Thing")


class Queue:
    """One model's queue. Call `load` once before anything else."""

    def __init__(
        self, redis: Client, *, model: str, num_shards: int = 1, limits: Limits | None = None, timings: Timings | None = None
    ):
        """`redis` from connection.connect; model must not hold braces, which delimit the hash tag."""
        if "{" in model or "}" in model:
            raise ValueError(f"model name {model!r} holds a brace")
        self.timings = timings or Timings()
        limits = limits or Limits()
        # Each shard takes its part; what a put compares with is that shard's own.
        self._limits = tuple(
            -(-most // num_shards)
            for most in (limits.max_requests, limits.max_tokens, limits.max_tenant_requests, limits.max_tenant_tokens)
        )
        self._redis = redis
        self._scripts = Scripts(redis)
        quiet_s = 1.25 * self.timings.lease_ms / 1000
        self._shards = [Shard(self._scripts, f"rt:{{{model}/{number}}}:", quiet_s) for number in range(num_shards)]
        # With several, one server that hangs must not hold up what the others do.
        self._within_s = self.timings.lease_ms / 4000 if num_shards > 1 else None
        self._claims: dict[Owner, Claims] = {}

    @property
    def num_shards(self) -> int:
        """Shards that rids may name."""
        return len(self._shards)

    @property
    def prefixes(self) -> list[str]:
        """What the keys of each shard begin with."""
        return [shard.prefix for shard in self._shards]

    async def load(self) -> None:
        """Loads the scripts. Raises Unavailable for no server, StartupError for one that is too old, evicts or refuses us."""
        async with redis_errors():
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
        reply = await self._of(request.rid).run(
            "put",
            *body_of(request),
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
            *self._limits,
        )
        verdict = reply[0]
        if verdict == b"overloaded":
            raise Unavailable("Too many requests are waiting; try again later.", retry_after_s=int(reply[1]) / 1000)
        if verdict == b"limited":
            raise RateLimited("You have too much under way; wait for some of it to end.", retry_after_s=int(reply[1]) / 1000)
        if verdict == b"reused":
            raise InvalidRequest("This idempotency key was used for a different request.", code="idempotency_key_reused")
        return answer_of(reply)

    async def claim(
        self, owner: Owner, k: int, *, solo: bool = False, lease_ms: int | None = None, max_cost: int | None = None
    ) -> list[Claim]:
        """Up to k requests this worker can start now, best first.

        solo: the worker is otherwise empty; then it may get one request that must run alone (Claim.solo), and nothing beside it.
        max_cost: stop at the first request that would take the sum of num_tokens above this; on an empty worker
        (solo=True) the first one always fits. Requests past their deadline are ended on the way. A shard that is slow answers
        with a later call, to which k = 0 is enough. One call at a time for each owner.
        """
        lease = lease_ms or self.timings.lease_ms

        async def ask(shard: Shard, num: int, alone: bool, left: int | None) -> list[Claim]:
            most = -1 if left is None else left
            reply = await shard.run("claim", owner, num, int(alone), lease, most, self.timings.retain_ms)
            return [claim_of(line) for line in reply]

        return await self._claims.setdefault(owner, Claims(self._shards)).take(ask, k, solo=solo, max_cost=max_cost)

    async def rest_of_claims(self, owner: Owner) -> list[Claim]:
        """What calls of `claim` still bring whose shard has not answered yet, for a worker that claims nothing more."""
        return await self._claims[owner].rest() if owner in self._claims else []

    async def reserve(self, owner: Owner) -> bool:
        """Whether this busy worker must claim nothing more until it is empty: what must run alone has waited too long.

        At most one worker for each shard is told so at a time; it asks again, and goes on with other work, when this is over.
        """
        times = (self.timings.solo_wait_ms, self.timings.solo_hold_ms)
        return any(await _those_that_answer(self._run(shard, "reserve", owner, *times) for shard in self._shards))

    async def renew(self, owner: Owner, held: Sequence[Held], *, lease_ms: int | None = None) -> list[Renewal]:
        """Extends the leases of all that this worker holds, in one call; call it only after a finished step or an idle tick.

        What stands in a shard that does not answer while others do is "unknown".
        """
        lease = lease_ms or self.timings.lease_ms

        async def renew(shard: Shard, lines: list[Held]) -> list[Renewal]:
            flat = [value for line in lines for value in (line.rid, line.epoch, line.attach, line.progress)]
            return [
                Renewal(line.rid, cast(RenewVerdict, verdict.decode()), router.decode(), int(attach))
                for line, (verdict, router, attach) in zip(
                    lines, await self._run(shard, "renew", owner, lease, *flat), strict=True
                )
            ]

        parts = self._by_shard(held, lambda line: line.rid)
        answers = await _those_that_answer(renew(*part) for part in parts.items())
        found = {renewal.rid: renewal for renewals in answers for renewal in renewals}
        return [found.get(line.rid, Renewal(line.rid, "unknown")) for line in held]

    async def revoke(self, router_id: str, rid: str, owner: Owner, epoch: int, progress: int = 0) -> Answer:
        """The stream to that owner broke and was not re-dialled: its lease ends now. "refused" if it is not the owner.

        progress: output tokens over all choices that this router has.
        """
        return answer_of(await self._of(rid).run("revoke", rid, router_id, owner, epoch, progress))

    async def release(self, owner: Owner, rid: str, epoch: int, floor: int = 0, progress: int = 0) -> Answer:
        """Hands a request back to the front of the queue; floor is the epoch of a Fenced answer. Else "refused".

        progress: as in a renewal; a request that is past the token of its last crash need not run alone any more.
        """
        return answer_of(await self._of(rid).run("release", rid, owner, epoch, floor, progress))

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
        shard = self._of(rid)
        return answer_of(await shard.run("finish", rid, owner, epoch, attach, outcome, reason, tenant, usage, retain))

    async def cancel(self, rid: str, *, tenant: str, router_id: str, attach: int, why: CancelReason) -> Answer:
        """Cancels by exact rid. Raises NotFound when it is another tenant's.

        "client": "ok", or "refused" with state done or dead; a missing one is recorded as cancelled.
        "disconnect": "ok", or "refused"/"missing" when the client is no longer at (router_id, attach).
        """
        return own_answer(await self._of(rid).run("cancel", rid, tenant, router_id, attach, why, self.timings.retain_ms), rid)

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
        body = body_of(request) if request else (rid, tenant, 0, 0, 0, "", "", b"")
        answer = own_answer(await self._of(rid).run("adopt", *body, tenant, router_id, attach or 0), rid)
        if answer.verdict == "missing" and request:
            return await self._put(request, attach=attach or 0, first=False, known=known or Known())
        return answer

    async def reap(self) -> Reaped:
        """Requeues what has lost its owner, proves or clears suspects, ends what passed its deadline unclaimed.

        Every router calls it about every 500 ms, jittered. It holds still for one lease and one renewal after Redis was
        unreachable or another server answers: then every lease looks expired and none is.
        """
        found = await _all(self._reap(shard) for shard in self._shards)
        return Reaped(
            num_requeued=sum(reaped.num_requeued for reaped in found),
            num_expired=sum(reaped.num_expired for reaped in found),
            dead=tuple(rid for reaped in found for rid in reaped.dead),
            quiet=any(reaped.quiet for reaped in found),
        )

    async def _reap(self, shard: Shard) -> Reaped:
        timings = self.timings
        args = (REAP_BATCH, timings.hold_ms, timings.retain_ms, timings.quarantine_ms)
        # A run id that is not the server's only asks for it.
        run_id, *reaped = await self._run(shard, "reap", *args, "" if shard.quiet else shard.run_id)
        if not reaped and shard.is_new(run_id.decode()):
            run_id, *reaped = await self._run(shard, "reap", *args, shard.run_id)
        return Reaped(int(reaped[0]), int(reaped[1]), tuple(rid.decode() for rid in reaped[2])) if reaped else Reaped(quiet=True)

    async def seen(self, owner: Owner) -> None:
        """This boot lives; a side thread of the worker says so every second."""
        await _all(shard.run("seen", owner, 0) for shard in self._shards)

    async def exited(self, owner: Owner) -> None:
        """This boot is gone for sure (its parent saw it exit): what it held counts as crashed without waiting."""
        await _all(shard.run("seen", owner, 1) for shard in self._shards)

    async def read(self, rids: Sequence[str]) -> dict[str, Record | None]:
        """The records as they stand, all of a shard at one moment; None where Redis has none."""

        async def read(shard: Shard, rids: list[str]) -> list[tuple[str, Record | None]]:
            return [(rid, record_of(rid, line)) for rid, line in zip(rids, await shard.run("read", *rids), strict=True)]

        parts = self._by_shard(rids, lambda rid: rid)
        return dict(pair for pairs in await _all(read(*part) for part in parts.items()) for pair in pairs)

    async def look(self, rid: str) -> Found | None:
        """Everything of one record, for a client that has only its rid; None if there is none."""
        reply = await self._of(rid).run("look", rid)
        return found_of(rid, reply) if reply else None

    async def dead(self) -> list[tuple[str, float]]:
        """The dead letters: rid and when it died, seconds since 1970, oldest first."""

        async def dead(shard: Shard) -> list[tuple[str, float]]:
            async with shard.asking():
                found = await cast(Any, self._redis.zrange(shard.prefix + "dead", 0, -1, withscores=True))
            return [(rid.decode(), at / 1e6) for rid, at in found]

        found = await _all(dead(shard) for shard in self._shards)
        return sorted((letter for letters in found for letter in letters), key=lambda letter: letter[1])

    async def pardon(self, rid: str) -> Answer:
        """A dead letter may run again, once its client comes back with its key or its rid. "refused" if it is none."""
        return answer_of(await self._of(rid).run("pardon", rid, self.timings.retain_ms))

    async def discard(self, rid: str) -> Answer:
        """A dead letter and its prompt are gone. "refused" if it is none."""
        return answer_of(await self._of(rid).run("discard", rid))

    async def measure(self) -> Load:
        """What waits, and how fast workers take it."""

        async def measure(shard: Shard) -> Load:
            async with shard.asking():
                num, tokens, rate = await cast(Any, self._redis.hmget(shard.prefix + "load", ["num", "tokens", "rate"]))
            return Load(int(num or 0), int(tokens or 0), float(rate or 0))

        loads = await _all(measure(shard) for shard in self._shards)
        return Load(
            sum(load.num_requests for load in loads),
            sum(load.num_tokens for load in loads),
            sum(load.claims_per_s for load in loads),
        )

    def bell(self) -> Bell:
        """A connection of its own that wakes when something is put; `async with queue.bell() as bell: await bell.wait(s)`."""
        return Bell(self._redis, [shard.prefix + "bell" for shard in self._shards])

    async def _run(self, shard: Shard, name: str, *args: object) -> Any:
        return await shard.run(name, *args, within_s=self._within_s)

    def _of(self, rid: str) -> Shard:
        # A rid of a stranger may name a shard that is not there; it is in none.
        return self._shards[shard_of(rid) % len(self._shards)]

    def _by_shard(self, things: Iterable[Thing], rid_of: Callable[[Thing], str]) -> dict[Shard, list[Thing]]:
        parts: dict[Shard, list[Thing]] = {}
        for thing in things:
            parts.setdefault(self._of(rid_of(thing)), []).append(thing)
        return parts


async def _all(calls: Iterable[Awaitable[Reply]]) -> list[Reply]:
    """Every call's answer; if one of them raises, so does this, once all have ended."""
    found = await asyncio.gather(*calls, return_exceptions=True)
    for answer in found:
        if isinstance(answer, BaseException):
            raise answer
    return cast(list[Reply], found)


async def _those_that_answer(calls: Iterable[Awaitable[Reply]]) -> list[Reply]:
    """The answers of those calls that found their server; raises Unavailable if none did."""
    found = await asyncio.gather(*calls, return_exceptions=True)
    answers: list[Reply] = []
    failures: list[BaseException] = []
    for answer in found:
        if isinstance(answer, BaseException):
            failures.append(answer)
        else:
            answers.append(answer)
    for failure in failures:
        if not answers or not isinstance(failure, Unavailable):
            raise failure
    return answers
