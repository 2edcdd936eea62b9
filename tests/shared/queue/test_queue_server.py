"""The queue and its server: full, forgetful, gone, restarted, too old; the bell and the registry."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from shared.errors import StartupError, Unavailable
from shared.queue.client import Queue
from shared.queue.connection import check_server, connect, is_patched
from shared.queue.registry import Registry, RouterFacts, WorkerFacts
from shared.queue.types import Held, Limits, Owner, Timings
from tests.redis_server import RedisServer, launch
from tests.shared.queue.queue_requests import W0, W1, put_and_claim, request


async def test_when_redis_is_full_nothing_new_comes_in_and_all_that_is_there_goes_on(queue: Queue, redis: Redis) -> None:
    running = [await put_and_claim(queue) for _ in range(3)]
    await redis.config_set("maxmemory", 1)
    try:
        before = await redis.dbsize()
        with pytest.raises(Unavailable) as refused:
            await queue.put(request())
        assert refused.value.code == "queue_full"
        assert await redis.dbsize() == before
        held = [Held(claim.rid, claim.epoch, claim.attach, 1) for claim in running]
        assert {renewal.verdict for renewal in await queue.renew(W0, held)} == {"ok"}
        assert (await queue.release(W0, running[0].rid, running[0].epoch)).verdict == "ok"
        (again,) = await queue.claim(W1, 1)
        adopted = await queue.adopt(again.rid, tenant="alice", router_id="r1")
        for owner, claim, attach in ((W1, again, adopted.attach), (W0, running[1], running[1].attach)):
            answer = await queue.finish(owner, claim.rid, claim.epoch, attach, "done", tenant="alice", usage=b"u" * 100)
            assert (answer.verdict, answer.booked) == ("ok", True)
        cancelled = await queue.cancel(running[2].rid, tenant="alice", router_id="r0", attach=0, why="client")
        assert cancelled.verdict == "ok"
        forgotten = await queue.finish(W0, "0" * 34, 5, 5, "done", tenant="alice", usage=b"u")
        assert forgotten.verdict == "ok"
    finally:
        await redis.config_set("maxmemory", 0)


async def test_a_replica_does_not_accept_work(queue: Queue, redis: Redis) -> None:
    await redis.replicaof("127.0.0.1", "1")  # nobody is there; as after a failover that this client has not noticed
    try:
        with pytest.raises(Unavailable) as refused:
            await queue.put(request())
    finally:
        await redis.replicaof("NO", "ONE")
    assert refused.value.code == "queue_unavailable"


async def test_a_server_that_forgot_the_scripts_is_taught_again(queue: Queue, redis: Redis) -> None:
    await redis.script_flush()
    claim = await put_and_claim(queue)
    assert claim.payload == b"payload"


async def test_every_key_of_a_shard_carries_one_hash_tag(queue: Queue, redis: Redis) -> None:
    await put_and_claim(queue, warm_key=b"k" * 32, tenant="odd {tenant}", deadline_ms=1000)
    assert {key.split(b"}")[0] for key in await redis.keys("*")} == {b"rt:{test/0"}
    with pytest.raises(ValueError, match="brace"):
        Queue(redis, model="a{b")


async def test_two_shards_are_one_queue(redis: Redis) -> None:
    """What waits in either is claimed, renewed, read, reaped; a stranger's rid that names a third shard is nowhere."""
    queue = Queue(redis, model="test", num_shards=2, timings=Timings(hold_ms=0))
    await queue.load()
    wanted = [request(rid=f"{number % 2:02x}{number:032x}") for number in range(8)]
    for each in wanted:
        await queue.put(each)
    assert {key.split(b"}")[0] for key in await redis.keys("rt:{test*r:*")} == {b"rt:{test/0", b"rt:{test/1"}
    first = await queue.claim(W0, 3, max_cost=300)
    second = await queue.claim(W0, 8, max_cost=500)
    assert sorted(claim.rid for claim in first + second) == sorted(each.rid for each in wanted)
    held = [Held(claim.rid, claim.epoch, claim.attach, 1) for claim in first + second]
    assert [(renewal.rid, renewal.verdict) for renewal in await queue.renew(W0, held)] == [(line.rid, "ok") for line in held]
    records = await queue.read([each.rid for each in wanted] + ["ff" + "0" * 32])
    assert [record.state for record in records.values() if record] == ["running"] * 8
    assert records["ff" + "0" * 32] is None
    assert await queue.look("ff" + "0" * 32) is None
    assert (await queue.measure()).num_requests == 0
    await queue.exited(W0)
    assert (await queue.reap()).num_requeued == 8
    assert (await queue.measure()).num_requests == 8
    assert {claim.rid for claim in await queue.claim(W1, 8)} == {each.rid for each in wanted}


async def test_limits_are_parted_among_shards(redis: Redis) -> None:
    queue = Queue(redis, model="test", num_shards=2, limits=Limits(max_requests=4))
    for number in range(2):
        await queue.put(request(rid=f"00{number:032x}"))
    with pytest.raises(Unavailable, match="Too many"):
        await queue.put(request(rid="00" + "f" * 32))
    await queue.put(request(rid="01" + "f" * 32))


async def test_without_a_server_every_call_says_so_with_a_time_to_come_back(tmp_path: Path) -> None:
    redis = connect(f"unix://{tmp_path}/none.sock")
    queue = Queue(redis, model="test")
    for call in (queue.load(), queue.put(request()), queue.reap(), queue.measure(), Registry(redis).routers()):
        with pytest.raises(Unavailable) as refused:
            await call
        assert refused.value.code == "queue_unavailable"
        assert refused.value.retry_after_s == 1.0
    async with queue.bell() as bell:
        assert not await bell.wait(0.01)


async def test_after_a_restart_nobody_is_reaped_for_a_lease_and_a_renewal(tmp_path: Path) -> None:
    server = launch(tmp_path / "r")
    redis = connect(server.url)
    quiet = Queue(redis, model="test", timings=Timings(lease_ms=3_600_000))
    brisk = Queue(redis, model="test", timings=Timings(lease_ms=1))
    try:
        for queue in (quiet, brisk):
            assert not (await queue.reap()).quiet
        server.stop()
        (tmp_path / "r").unlink()
        server = launch(tmp_path / "r")
        claim = await put_and_claim(brisk)
        await brisk.revoke("r0", claim.rid, W0, claim.epoch)
        assert (await quiet.reap()).quiet
        while (reaped := await brisk.reap()).quiet:
            pass
        assert reaped.num_requeued == 1
        assert (await quiet.reap()).quiet
    finally:
        server.stop()
        await redis.aclose()
        await redis.connection_pool.disconnect()


async def test_a_call_that_found_no_server_makes_its_queue_hold_still(server: RedisServer, redis: Redis) -> None:
    queue = Queue(redis, model="test", timings=Timings(lease_ms=3_600_000))
    await queue.reap()
    pool = redis.connection_pool
    kept = pool.connection_kwargs["path"]
    pool.connection_kwargs["path"] = kept + ".gone"
    await pool.disconnect()
    pool.reset()
    with pytest.raises(Unavailable):
        await queue.reap()
    pool.connection_kwargs["path"] = kept
    await pool.disconnect()
    pool.reset()
    assert (await queue.reap()).quiet


async def test_the_bell_rings_for_a_put_and_for_work_handed_back(queue: Queue) -> None:
    async with queue.bell() as bell:
        assert not await bell.wait(0.01)
        claim = await put_and_claim(queue)
        await queue.put(request())
        await queue.measure()  # a server that answers this has sent every ring before
        assert await bell.wait(5)
        assert not await bell.wait(0.01)  # several rings wake once
        waiting = asyncio.create_task(bell.wait(5))
        await queue.release(W0, claim.rid, claim.epoch)
        assert await waiting


async def test_the_registry_knows_who_is_there(redis: Redis) -> None:
    registry = Registry(redis)
    assert await registry.routers() == []
    facts = RouterFacts("r0", "boot", "unix:/run/deliver.sock")
    worker = WorkerFacts("w0", "boot", {"model": "m", "room": 3})
    await registry.announce_router(facts)
    await registry.announce_worker(worker)
    assert (await registry.routers(), await registry.workers()) == ([facts], [worker])
    assert await registry.router("r0") == facts
    assert 0 < await redis.ttl("rt:router:r0") <= 10
    await redis.delete("rt:router:r0")  # as its 10 seconds would
    assert (await registry.router("r0"), await registry.routers()) == (None, [])
    assert await redis.smembers("rt:routers") == set()
    await registry.withdraw_worker("w0")
    assert await registry.workers() == []


@pytest.mark.parametrize(
    ("kind", "version", "patched"),
    [
        ("redis", (6, 2, 19), False),
        ("redis", (6, 2, 20), True),
        ("redis", (7, 0, 15), False),
        ("redis", (7, 2, 11), True),
        ("redis", (7, 4, 5), False),
        ("redis", (8, 2, 1), False),
        ("redis", (8, 2, 2), True),
        ("redis", (8, 4, 0), True),
        ("valkey", (7, 2, 10), False),
        ("valkey", (8, 1, 4), True),
        ("valkey", (9, 0, 0), True),
    ],
)
def test_the_version_floor(kind: str, version: tuple[int, ...], patched: bool) -> None:
    assert is_patched(kind, version) == patched


def fake_server(connection: dict[str, Any], **info: Any) -> Redis:
    async def answer() -> dict[str, Any]:
        return info

    return cast(Redis, SimpleNamespace(info=answer, connection_pool=SimpleNamespace(connection_kwargs=connection)))


@pytest.mark.parametrize(
    "connection", [{"path": "/run/redis.sock"}, {"host": "127.0.0.2"}, {"host": "localhost"}, {"host": "::1"}]
)
async def test_an_unpatched_server_on_this_machine_is_only_warned_about(
    connection: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    await check_server(fake_server(connection, redis_version="6.2.14"))
    assert "update it" in caplog.text


async def test_an_unpatched_server_elsewhere_is_refused() -> None:
    with pytest.raises(StartupError, match=r"update it to 6\.2\.20"):
        await check_server(fake_server({"host": "10.0.0.1"}, redis_version="6.2.14"))
    await check_server(fake_server({"host": "10.0.0.1"}, redis_version="8.2.2"))
    await check_server(fake_server({"host": "10.0.0.1"}, redis_version="7.2.4", valkey_version="8.1.4"))


async def test_a_server_that_is_too_old_or_would_evict_is_refused() -> None:
    with pytest.raises(StartupError, match="too old"):
        await check_server(fake_server({"path": "/s"}, redis_version="5.0.9"))
    with pytest.raises(StartupError, match="noeviction"):
        await check_server(fake_server({"path": "/s"}, redis_version="8.2.2", maxmemory_policy="allkeys-lru", maxmemory=10**9))


async def test_a_server_that_wants_a_password_says_so_at_once(tmp_path: Path) -> None:
    server = launch(tmp_path / "r")
    admin, stranger = connect(server.url), connect(server.url)
    try:
        await admin.config_set("requirepass", "secret")
        with pytest.raises(StartupError, match="password"):
            await Queue(stranger, model="test").load()
    finally:
        server.stop()
        for redis in (admin, stranger):
            await redis.aclose()
            await redis.connection_pool.disconnect()


def test_a_bad_address_is_an_operators_error() -> None:
    with pytest.raises(StartupError, match="redis://host:6379"):
        connect("localhost:6379")


def test_an_owner_is_two_plain_names() -> None:
    assert Owner.parse("host/worker:0:boot") == Owner("host/worker:0", "boot")
    for worker_id, boot_id in (("", "b"), ("w 0", "b"), ("w", "b:c"), ("w;", "b")):
        with pytest.raises(ValueError, match="bad owner"):
            Owner(worker_id, boot_id)
