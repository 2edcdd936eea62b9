"""The queue on a real redis-server against the plain model, by random calls; invariants I4-I12 of reference/protocol.md that
concern the queue are checked after every call. Leases end by revoke, deaths by new boots and exit reports, never by waiting.
"""

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from shared.errors import NotFound
from shared.queue.client import Queue
from shared.queue.connection import connect
from shared.queue.types import Held, Known, NewRequest, Owner, Timings
from tests.redis_server import RedisServer
from tests.shared.queue.queue_model import ACTIVE, QueueModel, WorkerSeen

RIDS = [f"00{number:032x}" for number in range(2)]
TENANTS = {rid: f"tenant{number % 2}" for number, rid in enumerate(RIDS)}
COST = 10
LANES = ("waiting", "solo", "parked", "leases")
FOREVER_MS = 3_600_000

rids = st.sampled_from(RIDS)
routers = st.sampled_from(["r0", "r1"])
workers = st.sampled_from(["w0", "w1"])
picks = st.sampled_from([0, 0, 0, 0, 1, 1, 2, 5])  # mostly the latest


class QueueMachine(RuleBasedStateMachine):
    url = ""

    @initialize()
    def open(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.redis = connect(self.url)
        timings = Timings(lease_ms=FOREVER_MS, hold_ms=FOREVER_MS, solo_wait_ms=0, solo_hold_ms=FOREVER_MS)
        self.queue = Queue(self.redis, model="m", timings=timings)
        self.call(self.redis.flushall())
        self.model = QueueModel()
        self.boots = {"w0": 0, "w1": 0}
        self.assigned: dict[tuple[str, int], str] = {}  # (rid, epoch) -> owner, for ever: I4, I5
        self.attaches: dict[str, list[int]] = {rid: [0] for rid in RIDS}
        self.final: set[str] = set()  # client-cancelled or dead since Redis last lost everything
        self.booked: set[str] = set()
        for rid in RIDS:
            self.put(rid, "r0")
        self.claim("w0", 2, False)

    def call(self, awaitable: Any) -> Any:
        return self.loop.run_until_complete(awaitable)

    def owner(self, worker: str) -> Owner:
        return Owner(worker, f"b{self.boots[worker]}")

    def assignment(self, pick: int) -> tuple[str, int, Owner]:
        """One of all assignments ever made, the current ones and the stale ones; made up when there are none."""
        if not self.assigned:
            return RIDS[pick % 2], 1, self.owner("w0")
        (rid, epoch), owner = list(self.assigned.items())[-1 - pick % len(self.assigned)]
        return rid, epoch, Owner.parse(owner)

    def request(self, rid: str, router: str) -> NewRequest:
        return NewRequest(rid, router, TENANTS[rid], b"payload", "digest", COST)

    def check(self, rid: str, answer: Any, verdict: str) -> None:
        assert answer.verdict == verdict
        record = self.model.records.get(rid)
        if record is None:
            assert answer.state == ""
            return
        if answer.state == "queued":
            assert answer.epoch >= record.epoch
            record.epoch = answer.epoch
        assert answer.attach >= record.attach
        record.attach = answer.attach
        self.attaches[rid].append(answer.attach)
        expected = (record.state, record.epoch, record.owner, record.router, record.attach, record.reason)
        assert (answer.state, answer.epoch, answer.owner, answer.router, answer.attach, answer.reason) == expected

    @rule(rid=rids, router=routers)
    def put(self, rid: str, router: str) -> None:
        before = self.call(self.queue.read([rid]))[rid]
        answer = self.call(self.queue.put(self.request(rid, router)))
        self.check(rid, answer, self.model.put(rid, TENANTS[rid], router))
        assert before is None or before == self.call(self.queue.read([rid]))[rid]  # I10

    @rule(pick=picks, router=routers, restore=st.booleans(), crashes=st.integers(0, 2), progress=st.integers(0, 2))
    def put_back(self, pick: int, router: str, restore: bool, crashes: int, progress: int) -> None:
        rid, epoch, owner = self.assignment(pick)
        known = Known(owner if restore else None, epoch, crashes, progress)
        answer = self.call(self.queue.put(self.request(rid, router), attach=self.attaches[rid][-1] or 1, known=known))
        kept = (str(owner), epoch) if restore else ("", 0)
        verdict = self.model.put(rid, TENANTS[rid], router, *kept, crashes, progress)
        if verdict == "ok" and restore:
            self.assigned.setdefault((rid, epoch), str(owner))
        if verdict == "ok" and not restore:
            assert answer.epoch > epoch
        self.check(rid, answer, verdict)

    @rule(worker=workers, k=st.integers(1, 3), solo=st.sampled_from([True, True, False]))
    def claim(self, worker: str, k: int, solo: bool) -> None:
        owner = self.owner(worker)
        self.model.hear(str(owner))
        free = self.model.claimable(solo=solo)
        alone = any(self.model.records[rid].lane == "solo" for rid in free)
        claims = self.call(self.queue.claim(owner, k, solo=solo))
        assert len(claims) == (1 if alone else min(k, len(free)))
        for claim in claims:
            assert claim.rid in free - self.final  # I6, I9
            assert (claim.rid, claim.epoch) not in self.assigned  # I4, I5
            record = self.model.records[claim.rid]
            assert claim.epoch > record.epoch
            seen = (claim.solo, claim.crashes, claim.died_at, claim.payload)
            assert seen == (alone, record.crashes, record.died_at, b"payload")
            assert (claim.router, claim.attach, claim.tenant) == (record.router, record.attach, record.tenant)
            self.assigned[claim.rid, claim.epoch] = str(owner)
            self.model.claim(claim.rid, str(owner), claim.epoch)

    @rule(pick=picks, progress=st.integers(0, 3))
    def renew(self, pick: int, progress: int) -> None:
        rid, epoch, owner = self.assignment(pick)
        self.model.hear(str(owner))
        (renewal,) = self.call(self.queue.renew(owner, [Held(rid, epoch, 0, progress)]))
        assert renewal.verdict == self.model.renew(rid, str(owner), epoch, progress)
        if renewal.verdict == "ok":
            record = self.model.records[rid]
            assert (renewal.router, renewal.attach) == (record.router, record.attach)

    @rule(pick=picks, router=routers)
    def revoke(self, pick: int, router: str) -> None:
        rid, epoch, owner = self.assignment(pick)
        self.revoke_now(router, rid, epoch, owner)

    def revoke_now(self, router: str, rid: str, epoch: int, owner: Owner) -> None:
        answer = self.call(self.queue.revoke(router, rid, owner, epoch))
        self.check(rid, answer, self.model.revoke(router, rid, str(owner), epoch))

    @rule(worker=workers)
    def reserve(self, worker: str) -> None:
        """At most one worker runs empty for the solo lane, and only while something stands there."""
        owner = self.owner(worker)
        self.model.hear(str(owner))
        assert self.call(self.queue.reserve(owner)) == self.model.reserve(str(owner))

    @rule(pick=picks, floor=st.sampled_from([0, 2**52]), progress=st.integers(0, 3))
    def release(self, pick: int, floor: int, progress: int) -> None:
        rid, epoch, owner = self.assignment(pick)
        self.model.hear(str(owner))
        answer = self.call(self.queue.release(owner, rid, epoch, floor, progress))
        self.check(rid, answer, self.model.release(str(owner), rid, epoch, progress))
        assert answer.verdict != "ok" or answer.epoch > max(epoch, floor)

    @rule(pick=picks, outcome=st.sampled_from(["done", "cancelled", "failed"]), reason=st.sampled_from(["orphan", "client"]))
    def finish(self, pick: int, outcome: Any, reason: str) -> None:
        rid, epoch, owner = self.assignment(pick)
        attach = self.attaches[rid][-1 - pick % 2 if len(self.attaches[rid]) > 1 else 0]
        self.model.hear(str(owner))
        tenant = TENANTS[rid]
        answer = self.call(self.queue.finish(owner, rid, epoch, attach, outcome, tenant=tenant, usage=b"u", reason=reason))
        verdict, booked = self.model.finish(str(owner), rid, epoch, attach, outcome, reason, tenant)
        self.check(rid, answer, verdict)
        assert answer.booked == booked
        assert not (booked and rid in self.booked)  # I7
        if booked:
            self.booked.add(rid)

    @rule(rid=rids, router=routers, why=st.sampled_from(["client", "disconnect"]), pick=picks, foreign=st.integers(0, 9))
    def cancel(self, rid: str, router: str, why: Any, pick: int, foreign: int) -> None:
        attach = self.attaches[rid][-1 - pick % 2 if len(self.attaches[rid]) > 1 else 0]
        tenant = "stranger" if foreign == 0 and rid in self.model.records else TENANTS[rid]
        verdict = self.model.cancel(rid, tenant, router, attach, why)
        cancelling = self.queue.cancel(rid, tenant=tenant, router_id=router, attach=attach, why=why)
        if verdict == "foreign":
            with pytest.raises(NotFound):
                self.call(cancelling)
            return
        self.check(rid, self.call(cancelling), verdict)
        if verdict == "ok" and why == "client":
            self.final.add(rid)

    @rule(rid=rids, router=routers, pick=picks, fresh=st.booleans(), body=st.booleans())
    def adopt(self, rid: str, router: str, pick: int, fresh: bool, body: bool) -> None:
        attach = 0 if fresh else self.attaches[rid][-1 - pick % len(self.attaches[rid])]
        request = self.request(rid, router) if body else None
        before = self.model.records[rid].attach if rid in self.model.records else 0
        verdict = self.model.adopt(rid, TENANTS[rid], router, attach, body=body)
        answer = self.call(self.queue.adopt(rid, tenant=TENANTS[rid], router_id=router, attach=attach or None, request=request))
        self.check(rid, answer, verdict)
        if verdict == "ok":
            assert answer.attach > before if not attach else answer.attach == attach >= before

    @rule()
    def reap(self) -> None:
        num_requeued, dead = self.model.reap()
        reaped = self.call(self.queue.reap())
        assert (reaped.num_requeued, set(reaped.dead)) == (num_requeued, dead)
        self.final |= dead

    @rule(worker=workers, told=st.booleans())
    def restart(self, worker: str, told: bool) -> None:
        old = self.owner(worker)
        self.boots[worker] += 1
        if told:
            self.call(self.queue.exited(old))
            self.model.workers.setdefault(worker, WorkerSeen()).exited = old.boot_id
            self.model.expire_all_of(str(old))
        self.model.hear(str(self.owner(worker)))
        self.call(self.queue.seen(self.owner(worker)))

    @rule(rid=rids, worker=workers, told=st.booleans(), times=st.integers(1, 3))
    def crash(self, rid: str, worker: str, told: bool, times: int) -> None:
        """Whoever runs it dies, is found out and is started again, several times over."""
        for _ in range(times):
            if self.lose_lease(rid, worker, 1):
                self.restart(worker, told)
            self.reap()

    def lose_lease(self, rid: str, worker: str, times: int) -> bool:
        """Whoever runs it loses Redis for longer than a lease, and lives; whether that was `worker`, just started."""
        lost = False
        for _ in range(times):
            if rid in self.model.claimable(solo=True):
                self.claim(worker, 2, True)
            record = self.model.records.get(rid)
            lost = record is not None and record.state == "running" and record.owner == str(self.owner(worker))
            if record is not None and record.state == "running":
                self.revoke_now(record.router, rid, record.epoch, Owner.parse(record.owner))
                self.reap()
        return lost

    @rule(rid=rids, worker=workers, times=st.integers(1, 3))
    def lose(self, rid: str, worker: str, times: int) -> None:
        self.lose_lease(rid, worker, times)

    @rule(rid=rids, worker=workers, told=st.booleans())
    def lapse(self, rid: str, worker: str, told: bool) -> None:
        """An owner that lost its lease is heard again, by its renewal or by its side thread, before anyone claimed."""
        if self.lose_lease(rid, worker, 1):
            if told:
                self.renew(0, 1)
            else:
                self.call(self.queue.seen(self.owner(worker)))
                self.model.hear(str(self.owner(worker)))
            self.reap()

    @rule(rid=rids, router=routers)
    def stale_disconnect(self, rid: str, router: str) -> None:
        """The client came back to the same router on a new connection; only then is the old one seen to be closed."""
        self.adopt(rid, router, 0, True, False)
        self.cancel(rid, router, "disconnect", 1, 1)

    @rule(worker=workers, router=routers, late=rids)
    def serve(self, worker: str, router: str, late: str) -> None:
        """One more request runs to its end, and a late put follows."""
        self.claim(worker, 1, True)
        self.finish(0, "done", "")
        self.put(late, router)

    @precondition(lambda self: self.model.records)
    @rule()
    def flush(self) -> None:
        self.call(self.redis.flushall())
        self.model.flush()
        self.final.clear()
        self.booked.clear()

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "model"):
            return
        records = self.call(self.queue.read(RIDS))
        for rid in RIDS:
            mine, real = self.model.records.get(rid), records[rid]
            assert (mine is None) == (real is None)
            if mine and real:
                seen = (real.state, real.epoch, real.owner, real.router, real.attach, real.revivable, real.crashes, real.counted)
                wanted = (
                    mine.state,
                    mine.epoch,
                    mine.owner,
                    mine.router,
                    mine.attach,
                    mine.revivable,
                    mine.crashes,
                    mine.counted,
                )
                assert seen == wanted
                assert real.reason == mine.reason
                assert not (mine.state == "dead" and mine.reason == "crashes" and mine.total_crashes < 3)  # I8
        self.call(self._indexes_agree())

    async def _indexes_agree(self) -> None:
        prefix = self.queue.prefixes[0]
        pipe = self.redis.pipeline(transaction=False)
        for lane in LANES:
            pipe.zrange(prefix + lane, 0, -1)
        pipe.hmget(prefix + "load", "num", "tokens")
        for tenant in ("tenant0", "tenant1"):
            pipe.hmget(prefix + "tenant:" + tenant, "num", "tokens")
            pipe.ttl(prefix + "tenant:" + tenant)
        for rid in RIDS:
            pipe.ttl(prefix + "r:" + rid)
        pipe.zrange(prefix + "suspected", 0, -1)
        *found, suspected = await pipe.execute()
        records = self.model.records
        for lane, members in zip(LANES, found[:4], strict=True):
            assert {rid.decode() for rid in members} == {rid for rid, record in records.items() if record.lane == lane}
        queued = sum(record.state == "queued" for record in records.values())
        assert [int(value or 0) for value in found[4]] == [queued, queued * COST]
        for number in range(2):
            counts, ttl = found[5 + 2 * number : 7 + 2 * number]
            active = [r for r in records.values() if r.tenant == f"tenant{number}" and r.state in ACTIVE and r.has_body]
            assert [int(value or 0) for value in counts] == [len(active), len(active) * COST]
            assert (ttl == -1) == bool(active)  # nothing without an expiry or an owner
        for rid, ttl in zip(RIDS, found[9:], strict=True):
            assert (ttl == -1) == (rid in records and records[rid].state in ACTIVE)
        assert {rid.decode() for rid in suspected} == {
            rid for rid, record in records.items() if record.suspects and record.state in ACTIVE
        }

    def teardown(self) -> None:
        """I11, I12: with faults over, one worker empties the queue."""
        if not hasattr(self, "loop"):
            return
        self.call(self._drain())
        self.call(self.redis.aclose())
        self.call(self.redis.connection_pool.disconnect())
        self.loop.close()

    async def _drain(self) -> None:
        owners = [Owner("w0", "last"), Owner("w1", "last")]
        for record in (await self.queue.read(RIDS)).values():
            if record and record.state == "running":
                await self.queue.revoke(record.router, record.rid, Owner.parse(record.owner), record.epoch)
        for owner in owners:
            await self.queue.seen(owner)
        for _ in RIDS:
            await self.queue.reap()
            for claim in await self.queue.claim(owners[0], len(RIDS), solo=True):
                tenant = TENANTS[claim.rid]
                answer = await self.queue.finish(owners[0], claim.rid, claim.epoch, claim.attach, "done", tenant=tenant)
                assert answer.verdict == "ok"
        assert not any(record and record.state in ACTIVE for record in (await self.queue.read(RIDS)).values())


def test_the_queue_agrees_with_the_model(server: RedisServer) -> None:
    """I4-I12 of reference/protocol.md on a real server, for any order of calls."""
    machine = type("QueueMachine", (QueueMachine,), {"url": server.url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=50, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
        ),
    )
