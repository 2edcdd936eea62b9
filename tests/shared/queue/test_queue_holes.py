"""The holes of reference/protocol.md §7 that the queue must close, each by its number, replayed on a real server."""

from dataclasses import replace

import pytest
from redis.asyncio import Redis

from shared.errors import InvalidRequest
from shared.queue.client import Queue
from shared.queue.rid import rid_for_key
from shared.queue.types import Held, Known, Owner, Timings
from tests.shared.queue.queue_requests import W0, W1, W2, lose, put_and_claim, request


async def test_h1_an_epoch_is_never_issued_twice_even_after_redis_lost_everything(queue: Queue, redis: Redis) -> None:
    first = await put_and_claim(queue)
    await redis.flushall()
    await queue.put(request(rid=first.rid), attach=first.attach)
    (second,) = await queue.claim(W1, 1)
    assert second.epoch > first.epoch


async def test_h1_release_raises_the_epoch_above_the_floor_it_was_fenced_with(queue: Queue) -> None:
    claim = await put_and_claim(queue)
    floor = claim.epoch + 10**12
    assert (await queue.release(W0, claim.rid, claim.epoch, floor)).epoch > floor
    (again,) = await queue.claim(W1, 1)
    assert again.epoch > floor + 1


async def test_h2_a_late_put_resurrects_nothing_and_resets_nothing(queue: Queue) -> None:
    claim = await put_and_claim(queue)
    running = (await queue.read([claim.rid]))[claim.rid]
    late = request(rid=claim.rid, router_id="r1")
    assert (await queue.put(late, attach=7, known=Known(W1, 3))).verdict == "exists"
    assert (await queue.read([claim.rid]))[claim.rid] == running
    await queue.finish(W0, claim.rid, claim.epoch, claim.attach, "done", tenant="alice", usage=b"u")
    answer = await queue.put(late, attach=7)
    assert (answer.verdict, answer.state) == ("exists", "done")
    assert await queue.claim(W1, 1) == []


async def test_h3_a_healthy_owner_is_restored_with_its_own_epoch_and_keeps_running(queue: Queue, redis: Redis) -> None:
    claim = await put_and_claim(queue)
    await redis.flushall()
    held = [Held(claim.rid, claim.epoch, claim.attach, 5)]
    assert (await queue.renew(W0, held))[0].verdict == "unknown"
    answer = await queue.put(request(rid=claim.rid), attach=claim.attach, known=Known(W0, claim.epoch))
    assert (answer.state, answer.owner, answer.epoch, answer.attach) == ("running", str(W0), claim.epoch, claim.attach)
    assert await queue.claim(W1, 1) == []
    assert (await queue.renew(W0, held))[0].verdict == "ok"


async def test_h5_finish_of_a_forgotten_request_keeps_usage_and_nobody_runs_it_again(queue: Queue, redis: Redis) -> None:
    claim = await put_and_claim(queue)
    await redis.flushall()
    answer = await queue.finish(W0, claim.rid, claim.epoch, claim.attach, "done", tenant="alice", usage=b"usage")
    assert (answer.verdict, answer.booked) == ("ok", True)
    assert (await queue.put(request(rid=claim.rid), attach=claim.attach)).state == "done"
    assert await queue.claim(W1, 1) == []
    record = (await queue.read([claim.rid]))[claim.rid]
    assert record is not None
    assert record.usage == b"usage"
    assert 0 < await redis.pttl(f"{queue.prefixes[0]}r:{claim.rid}") <= 300_000


async def test_h6_finish_under_an_old_attachment_is_sent_to_the_new_router(queue: Queue) -> None:
    claim = await put_and_claim(queue)
    adopted = await queue.adopt(claim.rid, tenant="alice", router_id="r1")
    answer = await queue.finish(W0, claim.rid, claim.epoch, claim.attach, "done", tenant="alice")
    assert (answer.verdict, answer.router, answer.attach, answer.state) == ("moved", "r1", adopted.attach, "running")
    (renewal,) = await queue.renew(W0, [Held(claim.rid, claim.epoch, claim.attach)])
    assert (renewal.router, renewal.attach) == ("r1", adopted.attach)
    answer = await queue.finish(W0, claim.rid, claim.epoch, adopted.attach, "done", tenant="alice")
    assert answer.verdict == "ok"


async def test_h7_a_router_that_lost_the_client_cannot_cancel_what_another_serves(queue: Queue) -> None:
    claim = await put_and_claim(queue)
    await queue.adopt(claim.rid, tenant="alice", router_id="r1")
    answer = await queue.cancel(claim.rid, tenant="alice", router_id="r0", attach=claim.attach, why="disconnect")
    assert (answer.verdict, answer.state) == ("refused", "running")


@pytest.mark.parametrize("ending", ["done", "disconnect"])
async def test_h8_a_returning_client_makes_an_ended_request_run_again_and_be_counted_once(queue: Queue, ending: str) -> None:
    claim = await put_and_claim(queue)
    if ending == "done":
        await queue.finish(W0, claim.rid, claim.epoch, claim.attach, "done", tenant="alice", usage=b"first")
    else:
        await queue.cancel(claim.rid, tenant="alice", router_id="r0", attach=claim.attach, why="disconnect")
        overtaken = await queue.finish(W0, claim.rid, claim.epoch, claim.attach, "cancelled", tenant="alice", usage=b"first")
        assert (overtaken.verdict, overtaken.booked) == ("ok", True)
    adopted = await queue.adopt(claim.rid, tenant="alice", router_id="r1")
    assert (adopted.verdict, adopted.state) == ("ok", "queued")
    (again,) = await queue.claim(W1, 1)
    assert again.payload == claim.payload
    answer = await queue.finish(W1, claim.rid, again.epoch, again.attach, "done", tenant="alice", usage=b"second")
    assert (answer.verdict, answer.booked) == ("ok", False)
    record = (await queue.read([claim.rid]))[claim.rid]
    assert record is not None
    assert record.usage == b"first"


async def test_h9_a_worker_that_only_lost_redis_is_never_counted_as_crashed(queue: Queue) -> None:
    claim = await put_and_claim(queue)
    for _ in range(5):
        await lose(queue, claim, W0)
        await queue.seen(W0)
        (claim,) = await queue.claim(W0, 1)
        assert (claim.crashes, claim.solo) == (0, False)


async def test_h9_two_crashes_run_alone_and_three_are_the_end(queue: Queue, redis: Redis) -> None:
    claim = await put_and_claim(queue)
    for number in range(1, 4):
        owner = Owner("w0", f"life{number}")
        if number > 1:
            assert number != 3 or await queue.claim(owner, 1) == []
            (claim,) = await queue.claim(owner, 5, solo=True)
            assert (claim.crashes, claim.solo) == (number - 1, number == 3)
        else:
            owner = W0
        await lose(queue, claim, owner)
        await queue.exited(owner)
        reaped = await queue.reap()
    assert reaped.dead == (claim.rid,)
    record = (await queue.read([claim.rid]))[claim.rid]
    assert record is not None
    assert (record.state, record.reason, record.crashes) == ("dead", "crashes", 3)
    assert await redis.zscore(queue.prefixes[0] + "dead", claim.rid) is not None
    answer = await queue.adopt(claim.rid, tenant="alice", router_id="r1")
    assert answer.verdict == "ended"


async def test_h9_three_unproven_suspects_park_a_request_until_one_is_heard(queue: Queue) -> None:
    claim = await put_and_claim(queue)
    for owner, following in ((W0, W1), (W1, W2), (W2, None)):
        await lose(queue, claim, owner)
        if following:
            (claim,) = await queue.claim(following, 1, solo=True)
    assert await queue.claim(Owner("w3", "boot"), 1, solo=True) == []
    await queue.seen(W1)
    await queue.reap()
    (claim,) = await queue.claim(Owner("w3", "boot"), 1, solo=True)
    assert (claim.solo, claim.crashes) == (True, 0)


async def test_h9_coming_back_does_not_wash_a_suspect_request_clean(queue: Queue) -> None:
    claim = await put_and_claim(queue)
    await lose(queue, claim, W0)
    (claim,) = await queue.claim(W1, 1)
    await lose(queue, claim, W1)
    await queue.cancel(claim.rid, tenant="alice", router_id="r0", attach=claim.attach, why="disconnect")
    await queue.adopt(claim.rid, tenant="alice", router_id="r1")
    assert await queue.claim(W2, 1) == []
    assert [again.solo for again in await queue.claim(W2, 1, solo=True)] == [True]


async def test_h9_silence_long_enough_counts_as_a_crash(redis: Redis) -> None:
    queue = Queue(redis, model="test", timings=Timings(hold_ms=0))
    claim = await put_and_claim(queue)
    await lose(queue, claim, W0)
    (again,) = await queue.claim(W1, 1)
    assert again.crashes == 1


async def test_h9_progress_past_the_crash_forgives_it(queue: Queue) -> None:
    claim = await put_and_claim(queue)
    await queue.renew(W0, [Held(claim.rid, claim.epoch, claim.attach, 10)])
    await lose(queue, claim, W0)
    await queue.exited(W0)
    await queue.reap()
    (claim,) = await queue.claim(W1, 1)
    assert (claim.crashes, claim.died_at) == (1, 10)
    for progress, crashes in ((10, 1), (11, 0)):
        await queue.renew(W1, [Held(claim.rid, claim.epoch, claim.attach, progress)])
        record = (await queue.read([claim.rid]))[claim.rid]
        assert record is not None
        assert record.crashes == crashes


async def test_h13_one_idempotency_key_is_one_request_whatever_redis_forgets(queue: Queue, redis: Redis) -> None:
    rid = rid_for_key(b"s" * 32, "alice", "key")
    assert rid == rid_for_key(b"s" * 32, "alice", "key") != rid_for_key(b"s" * 32, "bob", "key")
    claim = await put_and_claim(queue, rid=rid)
    assert (await queue.put(request(rid=rid, router_id="r1"))).verdict == "exists"
    await redis.flushall()
    await queue.put(request(rid=rid), attach=claim.attach, known=Known(W0, claim.epoch))
    assert (await queue.put(request(rid=rid, router_id="r1"))).owner == str(W0)
    with pytest.raises(InvalidRequest) as refused:
        await queue.put(replace(request(rid=rid), digest="another"))
    assert refused.value.code == "idempotency_key_reused"


async def test_h18_of_two_routers_that_adopt_back_the_newer_attachment_wins(queue: Queue) -> None:
    claim = await put_and_claim(queue)
    newer = await queue.adopt(claim.rid, tenant="alice", router_id="r1")
    older = await queue.adopt(claim.rid, tenant="alice", router_id="r0", attach=claim.attach)
    assert (older.verdict, older.router, older.attach) == ("superseded", "r1", newer.attach)
    repeated = await queue.adopt(claim.rid, tenant="alice", router_id="r1", attach=newer.attach)
    assert (repeated.verdict, repeated.attach) == ("ok", newer.attach)


async def test_h20_a_forgotten_body_must_be_sent_again(queue: Queue, redis: Redis) -> None:
    claim = await put_and_claim(queue)
    await redis.flushall()
    assert (await queue.adopt(claim.rid, tenant="alice", router_id="r1")).verdict == "missing"
    await queue.finish(W0, claim.rid, claim.epoch, claim.attach, "done", tenant="alice")
    assert (await queue.adopt(claim.rid, tenant="alice", router_id="r1")).verdict == "gone"
    answer = await queue.adopt(claim.rid, tenant="alice", router_id="r1", request=request(rid=claim.rid, router_id="r1"))
    assert (answer.verdict, answer.state) == ("ok", "queued")
    (again,) = await queue.claim(W1, 1)
    assert (again.payload, again.num_tokens, again.router) == (b"payload", 100, "r1")
