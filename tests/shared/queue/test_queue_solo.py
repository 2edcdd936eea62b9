"""What must run alone gets a worker although none is ever empty by itself; and no more than one at a time."""

import asyncio

from redis.asyncio import Redis

from shared.queue.client import Queue
from shared.queue.types import Claim, Held, Known, Owner, Timings
from tests.shared.queue.queue_requests import W0, W1, W2, request

FOREVER_MS = 3_600_000


async def put_suspect(queue: Queue) -> str:
    wanted = request()
    await queue.put(wanted, attach=1, known=Known(crashes=2))
    return wanted.rid


async def take_alone(queue: Queue, owner: Owner) -> Claim:
    (claim,) = await queue.claim(owner, 5, solo=True)
    assert claim.solo
    return claim


async def test_one_worker_runs_empty_until_nothing_more_must_run_alone(redis: Redis) -> None:
    queue = Queue(redis, model="test", timings=Timings(solo_wait_ms=0, solo_hold_ms=FOREVER_MS))
    assert not await queue.reserve(W0)
    rids = {await put_suspect(queue), await put_suspect(queue)}
    assert [await queue.reserve(owner) for owner in (W0, W1, W2, W0)] == [True, False, False, True]
    taken = {(await take_alone(queue, W0)).rid}
    assert await queue.reserve(Owner("w0", "started-again"))
    assert not await queue.reserve(W1)
    taken.add((await take_alone(queue, W1)).rid)  # one that is empty by itself needs no leave
    assert taken == rids
    assert not await queue.reserve(W0)
    assert await redis.exists(queue.prefixes[0] + "reserved") == 0


async def test_a_worker_that_is_not_heard_again_gives_way_to_another(redis: Redis) -> None:
    queue = Queue(redis, model="test", timings=Timings(solo_wait_ms=0, solo_hold_ms=20))
    await put_suspect(queue)
    assert await queue.reserve(W0)
    async with asyncio.timeout(10):
        while not await queue.reserve(W1):
            await asyncio.sleep(0.005)


async def test_no_worker_runs_empty_for_what_has_just_come(redis: Redis) -> None:
    queue = Queue(redis, model="test", timings=Timings(solo_wait_ms=FOREVER_MS))
    await put_suspect(queue)
    assert not await queue.reserve(W0)
    patient = Queue(redis, model="test", timings=Timings(solo_wait_ms=50))
    async with asyncio.timeout(10):
        while not await patient.reserve(W0):
            await asyncio.sleep(0.005)
    # The next in line has not waited yet, but that worker is at it.
    await put_suspect(queue)
    await take_alone(queue, W1)
    assert await queue.reserve(W0)
    assert not await queue.reserve(W2)


async def test_the_time_of_the_next_in_line_begins_when_it_is_the_first(redis: Redis) -> None:
    queue = Queue(redis, model="test", timings=Timings(solo_wait_ms=FOREVER_MS))
    for _ in range(3):
        await put_suspect(queue)
        assert not await queue.reserve(W0)
        await take_alone(queue, W1)
    assert await redis.exists(queue.prefixes[0] + "reserved") == 1
    assert not await queue.reserve(W0)
    assert await redis.exists(queue.prefixes[0] + "reserved") == 0


async def test_what_proved_harmless_is_handed_back_to_the_ordinary_queue(queue: Queue) -> None:
    rid = await put_suspect(queue)
    claim = await take_alone(queue, W0)
    await queue.release(W0, rid, claim.epoch, progress=0)
    claim = await take_alone(queue, W0)
    await queue.release(W0, rid, claim.epoch, progress=1)
    (claim,) = await queue.claim(W1, 1)
    assert (claim.rid, claim.solo, claim.crashes) == (rid, False, 0)


async def test_what_redis_forgot_runs_alone_until_it_is_past_what_its_router_has(queue: Queue) -> None:
    wanted = request()
    await queue.put(wanted, attach=1, known=Known(crashes=2, progress=8))
    claim = await take_alone(queue, W0)
    assert (claim.crashes, claim.died_at) == (2, 8)
    for progress, crashes in ((8, 2), (9, 0)):
        await queue.renew(W0, [Held(claim.rid, claim.epoch, claim.attach, progress)])
        record = (await queue.read([claim.rid]))[claim.rid]
        assert record is not None
        assert record.crashes == crashes
