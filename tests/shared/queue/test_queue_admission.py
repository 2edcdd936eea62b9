"""Who gets in and in which order: limits, fair queueing, bands, affinity, deadlines."""

import pytest
from redis.asyncio import Redis

from shared.errors import NotFound, RateLimited, Unavailable
from shared.queue.client import Queue
from shared.queue.types import Limits, Owner, Timings
from tests.shared.queue.queue_requests import W0, W1, put_and_claim, request

FOREVER_MS = 3_600_000


async def tenants_in_order(queue: Queue, num: int) -> list[str]:
    return [claim.tenant for claim in await queue.claim(W0, num)]


@pytest.mark.parametrize("limits", [Limits(max_requests=2), Limits(max_tokens=250)])
async def test_when_too_much_waits_a_first_put_is_refused_as_overload(redis: Redis, limits: Limits) -> None:
    queue = Queue(redis, model="test", limits=limits)
    for tenant in ("alice", "bob"):
        await queue.put(request(tenant=tenant))
    with pytest.raises(Unavailable) as refused:
        await queue.put(request(tenant="carol"))
    assert refused.value.code == "overloaded"
    assert refused.value.retry_after_s is not None
    assert 1 <= refused.value.retry_after_s <= 60
    assert (await queue.put(request(), attach=5)).verdict == "ok"  # put back: never refused
    await queue.claim(W0, 2)
    assert (await queue.put(request(tenant="carol"))).verdict == "ok"  # what runs does not wait


@pytest.mark.parametrize("limits", [Limits(max_tenant_requests=2), Limits(max_tenant_tokens=250)])
async def test_one_tenant_over_its_limit_is_rate_limited_and_others_are_not(redis: Redis, limits: Limits) -> None:
    queue = Queue(redis, model="test", limits=limits)
    claim = await put_and_claim(queue)
    await queue.put(request())
    with pytest.raises(RateLimited):
        await queue.put(request())
    await queue.put(request(tenant="bob"))
    await queue.finish(W0, claim.rid, claim.epoch, claim.attach, "done", tenant="alice")
    assert (await queue.put(request())).verdict == "ok"


async def test_one_request_larger_than_the_token_limit_fits_an_empty_queue(redis: Redis) -> None:
    queue = Queue(redis, model="test", limits=Limits(max_tokens=50, max_tenant_tokens=50))
    assert (await queue.put(request())).verdict == "ok"


async def test_a_refused_put_leaves_nothing_behind(redis: Redis) -> None:
    queue = Queue(redis, model="test", limits=Limits(max_requests=1))
    await queue.put(request())
    before = await redis.dbsize()
    with pytest.raises(Unavailable):
        await queue.put(request(tenant="bob"))
    assert await redis.dbsize() == before


async def test_a_tenant_that_floods_the_queue_shares_by_tokens_with_one_that_comes_later(queue: Queue) -> None:
    for _ in range(6):
        await queue.put(request(tenant="flood"))
    await queue.put(request(tenant="late"))
    await queue.put(request(tenant="late"))
    assert (await tenants_in_order(queue, 4)).count("late") == 2


async def test_large_requests_count_for_more(queue: Queue) -> None:
    for _ in range(4):
        await queue.put(request(tenant="large", num_tokens=300))
        await queue.put(request(tenant="small", num_tokens=100))
    order = await tenants_in_order(queue, 6)
    assert order.count("small") >= 3
    assert order.count("large") >= 2


async def test_weight_is_a_tenants_share(queue: Queue) -> None:
    for _ in range(6):
        await queue.put(request(tenant="heavy", weight=2.0))
        await queue.put(request(tenant="plain"))
    order = await tenants_in_order(queue, 6)
    assert order.count("heavy") == 4


async def test_a_tenant_that_was_idle_gets_no_credit_for_it(queue: Queue) -> None:
    for _ in range(5):
        await put_and_claim(queue, tenant="busy")
    for _ in range(3):
        await queue.put(request(tenant="busy"))
        await queue.put(request(tenant="idle"))
    assert (await tenants_in_order(queue, 5)).count("idle") in (2, 3)


async def test_a_lower_band_goes_first_whatever_its_tag(queue: Queue) -> None:
    for _ in range(3):
        await queue.put(request(band=5))
    urgent = request(band=0)
    await queue.put(urgent)
    assert (await queue.claim(W0, 1))[0].rid == urgent.rid


async def test_a_released_request_stands_in_front_of_later_ones(queue: Queue) -> None:
    claim = await put_and_claim(queue)
    for tenant in ("alice", "bob"):
        await queue.put(request(tenant=tenant))
    await queue.release(W0, claim.rid, claim.epoch)
    assert (await queue.claim(W1, 1))[0].rid == claim.rid


async def test_claim_stops_at_what_does_not_fit_but_an_empty_worker_takes_the_first(queue: Queue) -> None:
    for tokens in (100, 300, 50):
        await queue.put(request(tenant=f"t{tokens}", num_tokens=tokens))
    claims = await queue.claim(W0, 3, max_cost=10, solo=True)
    assert len(claims) == 1
    assert await queue.claim(W0, 3, max_cost=10) == []


async def test_a_prefix_is_kept_for_the_worker_that_has_it(redis: Redis) -> None:
    queue = Queue(redis, model="test", timings=Timings(affinity_ms=FOREVER_MS))
    await put_and_claim(queue, warm_key=b"k" * 32)
    again = request(warm_key=b"k" * 32)
    await queue.put(again)
    assert await queue.claim(W1, 5) == []
    assert [claim.rid for claim in await queue.claim(W0, 5)] == [again.rid]
    assert 0 < await redis.ttl(queue.prefixes[0] + "warm:" + (b"k" * 32).hex()) <= 60


async def test_after_its_time_anyone_may_take_it(redis: Redis) -> None:
    queue = Queue(redis, model="test", timings=Timings(affinity_ms=0))
    await put_and_claim(queue, warm_key=b"k" * 32)
    again = request(warm_key=b"k" * 32)
    await queue.put(again)
    assert await redis.zscore(queue.prefixes[0] + "waiting:w0", again.rid) is not None
    assert [claim.rid for claim in await queue.claim(W1, 5)] == [again.rid]
    assert await redis.exists(queue.prefixes[0] + "waiting:w0", queue.prefixes[0] + "affine") == 0


async def test_affinity_never_goes_before_a_better_claim(redis: Redis) -> None:
    queue = Queue(redis, model="test", timings=Timings(affinity_ms=FOREVER_MS))
    await put_and_claim(queue, warm_key=b"k" * 32)
    warm, urgent = request(warm_key=b"k" * 32), request(band=1)
    await queue.put(warm)
    await queue.put(urgent)
    assert [claim.rid for claim in await queue.claim(W0, 2)] == [urgent.rid, warm.rid]


async def until_passed(redis: Redis, milliseconds: int) -> None:
    seconds, micros = await redis.time()
    end = seconds * 1_000_000 + micros + milliseconds * 1000
    while seconds * 1_000_000 + micros <= end:
        seconds, micros = await redis.time()


async def test_work_past_its_deadline_is_never_started(queue: Queue, redis: Redis) -> None:
    expired, fine = request(deadline_ms=1), request(deadline_ms=60_000)
    await queue.put(expired)
    await queue.put(fine)
    await until_passed(redis, 2)
    (claim,) = await queue.claim(W0, 5)
    assert claim.rid == fine.rid
    assert claim.deadline_ms_left is not None
    assert 0 < claim.deadline_ms_left <= 60_000
    record = (await queue.read([expired.rid]))[expired.rid]
    assert record is not None
    assert (record.state, record.reason) == ("dead", "deadline")
    assert await redis.exists(queue.prefixes[0] + "deadlines") == 0


async def test_reap_ends_what_no_worker_came_for(queue: Queue, redis: Redis) -> None:
    await queue.put(request(deadline_ms=1))
    await until_passed(redis, 2)
    assert (await queue.reap()).num_expired == 1
    assert (await queue.measure()).num_requests == 0


async def test_cancel_needs_the_exact_rid_and_the_same_tenant(queue: Queue) -> None:
    wanted = request()
    await queue.put(wanted)
    await queue.cancel(wanted.rid[:-1], tenant="alice", router_id="r0", attach=0, why="client")
    with pytest.raises(NotFound):
        await queue.cancel(wanted.rid, tenant="bob", router_id="r0", attach=0, why="client")
    with pytest.raises(NotFound):
        await queue.adopt(wanted.rid, tenant="bob", router_id="r0")
    assert [claim.rid for claim in await queue.claim(W0, 5)] == [wanted.rid]


async def test_nothing_stays_without_an_expiry_once_all_is_done(queue: Queue, redis: Redis) -> None:
    claims = [await put_and_claim(queue, owner=Owner("w0", f"b{number}"), warm_key=b"k" * 32) for number in range(3)]
    await queue.put(request(warm_key=b"k" * 32))
    claims += await queue.claim(Owner("w0", "b2"), 1)
    for claim in claims:
        record = (await queue.read([claim.rid]))[claim.rid]
        assert record is not None
        await queue.finish(Owner.parse(record.owner), claim.rid, claim.epoch, claim.attach, "done", tenant="alice")
    keys = await redis.keys("*")
    assert keys
    assert [key for key in keys if await redis.ttl(key) == -1] == []
    assert all(key.startswith(queue.prefixes[0].encode()) for key in keys)
