"""The queue where Redis is several servers: sentinels name the primary, or a cluster has the shards; either may lose one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from shared.errors import StartupError, Unavailable
from shared.queue.address import parse
from shared.queue.client import Queue
from shared.queue.connection import Client, connect
from shared.queue.registry import Registry, RouterFacts, WorkerFacts
from shared.queue.types import Held, Timings
from tests import redis_many
from tests.redis_many import Servers
from tests.shared.queue.queue_requests import W0, W1, request

LEASE_MS = 3_000


@contextlib.asynccontextmanager
async def connected(servers: Servers) -> AsyncIterator[Client]:
    client = connect(servers.url)
    try:
        yield client
    finally:
        await client.aclose()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Servers]:
    with redis_many.cluster() as servers:
        yield servers


async def until_put(queue: Queue, rid: str, timeout_s: float = 40.0) -> float:
    """Puts as a router would whose client comes again, until it is accepted; how long that took."""
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    while True:
        try:
            await queue.put(request(rid=rid))
            return loop.time() - began_at
        except Unavailable as error:
            if error.code != "queue_unavailable" or loop.time() - began_at > timeout_s:
                raise
            await asyncio.sleep(0.1)


async def through_a_failover(queue: Queue, servers: Servers, primary: int, other: str, shard: str) -> None:
    """What was put and claimed before is there after; nobody is reaped for a lease and a renewal; the scripts are learnt anew.

    `other`: a prefix of rids in the shard whose primary dies; `shard`: the other one's, "" where there is none.
    """
    await queue.load()
    assert not (await queue.reap()).quiet
    for number in range(4):
        await queue.put(request(rid=f"{other}{number:032x}"))
    claims = await queue.claim(W0, 2)
    # Replication is asynchronous: what a client was told may be lost. Here it is not: the replica has it all.
    await asyncio.to_thread(redis_many.ask, primary, "WAIT", 1, 5000)
    async with queue.bell() as bell:
        await bell.wait(0.01)
        servers.kill(primary)
        if shard:
            # The other shard's server is up: there all goes on.
            with contextlib.suppress(Unavailable):
                await queue.claim(W1, 1)
            await until_put(queue, f"{shard}{0:032x}")
        took_s = await until_put(queue, f"{other}{9:032x}")
        print(f"a put was accepted again after {took_s:.1f} s")
        assert (await queue.reap()).quiet
        async with asyncio.timeout(30):
            number = 100
            while not await bell.wait(0.5):
                await queue.put(request(rid=f"{other}{number:032x}"))
                number += 1
    held = [Held(claim.rid, claim.epoch, claim.attach, 1) for claim in claims[:1]]
    (renewal,) = await queue.renew(W0, held, lease_ms=60_000)
    assert renewal.verdict == "ok"
    async with asyncio.timeout(30):
        while (await queue.reap()).quiet:
            await asyncio.sleep(0.1)
    left = {claim.rid for claim in await queue.claim(W1, 20)}
    assert {f"{other}{number:032x}" for number in (2, 3, 9)} <= left
    assert claims[0].rid not in left


async def test_sentinels_name_a_new_primary() -> None:
    with redis_many.sentinels() as servers:
        primary = redis_many.primary_of(servers)
        async with connected(servers) as client:
            await through_a_failover(Queue(client, model="m", timings=Timings(lease_ms=LEASE_MS)), servers, primary, "00", "")
        assert redis_many.primary_of(servers) != primary


async def test_a_sentinel_that_is_gone_is_not_asked_for_long() -> None:
    with redis_many.sentinels() as servers:
        first = parse(servers.url).nodes[0][1]
        servers.kill(first)
        async with connected(servers) as client, asyncio.timeout(10):
            await Queue(client, model="m").load()


async def test_a_replica_that_is_promoted_elsewhere_is_followed() -> None:
    """A planned failover: the old primary lives on as a replica and must not be written to any more."""
    with redis_many.sentinels() as servers:
        primary = redis_many.primary_of(servers)
        async with connected(servers) as client:
            queue = Queue(client, model="m")
            await queue.load()
            await queue.put(request(rid=f"00{1:032x}"))
            sentinel = parse(servers.url).nodes[0][1]
            await asyncio.to_thread(redis_many.ask, sentinel, "SENTINEL", "FAILOVER", redis_many.MASTER)
            await asyncio.to_thread(redis_many.until, lambda: redis_many.primary_of(servers) != primary, "another primary")
            await until_put(queue, f"00{2:032x}")
            assert {claim.rid for claim in await queue.claim(W0, 5)} == {f"00{1:032x}", f"00{2:032x}"}


async def test_registry_scripts_and_bell_work_on_a_cluster(cluster: Servers) -> None:
    async with connected(cluster) as client:
        registry = Registry(client)
        for number in range(6):
            await registry.announce_router(RouterFacts(f"r{number}", "boot", "unix:/run/deliver.sock"))
            await registry.announce_worker(WorkerFacts(f"w{number}", "boot", {"model": "m"}))
        assert [facts.router_id for facts in await registry.routers()] == [f"r{number}" for number in range(6)]
        await registry.withdraw_worker("w3")
        assert len(await registry.workers()) == 5
        queue = Queue(client, model="model", num_shards=2)
        await queue.load()
        async with queue.bell() as bell:
            assert not await bell.wait(0.05)
            for number in range(2):
                await queue.put(request(rid=f"{number:02x}{7:032x}"))
                assert await bell.wait(5)
        assert len(await queue.claim(W0, 4)) == 2
        assert len(await queue.read([f"{number:02x}{7:032x}" for number in range(2)])) == 2
        await client.script_flush()
        await queue.seen(W0)
        assert await queue.dead() == []
        assert (await queue.measure()).num_requests == 0


async def test_a_cluster_loses_a_master(cluster: Servers) -> None:
    async with connected(cluster) as client:
        queue = Queue(client, model="m", num_shards=2, timings=Timings(lease_ms=LEASE_MS))
        masters = [redis_many.master_of(cluster, prefix) for prefix in queue.prefixes]
        assert masters[0] != masters[1], "choose a model name whose two shards stand apart"
        await through_a_failover(queue, cluster, masters[0], "00", "01")
        assert redis_many.master_of(cluster, queue.prefixes[0]) != masters[0]


def test_addresses() -> None:
    found = parse("rediss+sentinel://user:p%40ss@a,[::1]:5000/my-master/3?sentinel_password=s")
    assert (found.kind, found.nodes, found.tls) == ("sentinel", (("a", 26379), ("::1", 5000)), {"ssl": True})
    assert (found.username, found.password, found.master, found.db) == ("user", "p@ss", "my-master", 3)
    assert (found.sentinel_username, found.sentinel_password) == (None, "s")
    assert parse("redis+cluster://a:7000,b").nodes == (("a", 7000), ("b", 6379))
    assert parse("unix:///tmp/s").kind == "server"
    assert parse("rediss+cluster://a?ssl_ca_certs=/etc/ca.crt").tls == {"ssl": True, "ssl_ca_certs": "/etc/ca.crt"}


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://a,b",
        "redis+sentinel://a/m/x",
        "redis+sentinel:///m",
        "redis+sentinel://a:no/m",
        "redis+sentinel://a/m?db=1",
        "redis+cluster://a/0",
        "redis+cluster://a:70000",
        "redis+cluster://a?ssl_ca_certs=/etc/ca.crt",
        "redis+ring://a",
        "unix+cluster://a",
    ],
)
def test_bad_addresses_are_an_operators_error(url: str) -> None:
    with pytest.raises(StartupError, match="bad Redis address"):
        connect(url)
