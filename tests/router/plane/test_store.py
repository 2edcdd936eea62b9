"""Records that outlive routers: versions, expiry, order, and that a tenant sees its own alone, on a real Redis."""

import asyncio

import pytest

from services.router.store import Store
from shared.queue.connection import connect
from tests.redis_server import redis_server


@pytest.fixture(scope="module")
def url():
    with redis_server() as server:
        yield server.url


@pytest.fixture
async def store(url):
    client = connect(url)
    await client.flushall()
    yield Store(client)
    await client.aclose()


async def test_a_record_is_written_over_by_who_read_it_last_alone(store: Store):
    assert await store.write("a", "batch", "b1", b"one", version=0, ttl_s=60)
    assert await store.write("a", "batch", "b1", b"one", version=0, ttl_s=60), "an answer may be lost and the write sent again"
    assert not await store.write("a", "batch", "b1", b"again", version=0, ttl_s=60)
    stored = await store.read("a", "batch", "b1")
    assert stored is not None
    assert (stored.version, stored.value) == (1, b"one")
    assert await store.write("a", "batch", "b1", b"two", version=1, ttl_s=60)
    assert not await store.write("a", "batch", "b1", b"late", version=1, ttl_s=60)
    assert (await store.read("a", "batch", "b1")).value == b"two"


async def test_of_many_writers_one_wins(store: Store):
    await store.write("a", "batch", "b1", b"0", version=0, ttl_s=60)
    won = await asyncio.gather(*(store.write("a", "batch", "b1", b"%d" % n, version=1, ttl_s=60) for n in range(20)))
    assert won.count(True) == 1


async def test_tenants_do_not_see_each_other(store: Store):
    await store.write("a", "batch", "b1", b"a's", version=0, ttl_s=60)
    assert await store.read("b", "batch", "b1") is None
    assert not await store.delete("b", "batch", "b1")
    assert await store.newest("b", "batch", limit=10) == []
    assert await store.delete("a", "batch", "b1")
    assert await store.read("a", "batch", "b1") is None


async def test_newest_first_page_by_page(store: Store):
    names = [f"r{number}" for number in range(7)]
    for name in names:
        await store.write("a", "response", name, name.encode(), version=0, ttl_s=60)
    seen, after = [], None
    while page := await store.newest("a", "response", limit=3, after=after):
        seen += [stored.record_id for stored in page]
        after = seen[-1]
    assert seen == names[::-1]
    assert await store.newest("a", "response", limit=3, after="unknown") == []


async def test_what_expired_is_gone_from_the_list(store: Store):
    for name, ttl_s in (("short", 1), ("long", 60)):
        await store.write("a", "response", name, b"x", version=0, ttl_s=ttl_s)
    while await store.read("a", "response", "short") is not None:
        await asyncio.sleep(0.05)
    assert [stored.record_id for stored in await store.newest("a", "response", limit=1)] == ["long"]


async def test_the_newest_are_kept(store: Store):
    for number in range(5):
        await store.write("a", "response", f"r{number}", b"x", version=0, ttl_s=60, most=3)
    assert [stored.record_id for stored in await store.newest("a", "response", limit=9)] == ["r4", "r3", "r2"]
    assert await store.read("a", "response", "r1") is None
