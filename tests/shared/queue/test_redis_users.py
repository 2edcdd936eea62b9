"""deploy/redis.acl on a real server: each role's user can do all that the queue does, and nothing that is not needed for it."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from redis.exceptions import NoPermissionError, ResponseError

from services.router.store import Store
from shared.errors import StartupError
from shared.queue.client import Queue
from shared.queue.connection import Access, Client, connect
from shared.queue.rate_limits import RateLimits, Rates
from shared.queue.registry import Registry, RouterFacts, WorkerFacts
from shared.queue.types import Held
from tests.redis_users import ADMIN, Guarded, guarded_redis
from tests.shared.queue.queue_requests import W0, put_and_claim, request
from tests.stack import ROOT

# What clients have that is no command, or none of its name.
NO_COMMANDS = {
    "aclose", "call", "execute", "from_pool", "from_url", "get_nodes", "get_primaries", "initialize", "pipeline", "pubsub",
    "register_script", "replicate_commands", "script_load",
}  # fmt: skip
USERS = ["router", "worker"]
# INFO says which server this is (its version, its run id, whether it would evict): it changes nothing.
NEEDED_DANGER = {"info"}


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    with guarded_redis() as running:
        yield running


@asynccontextmanager
async def client_of(guarded: Guarded, user: str, password: str | None = None) -> AsyncIterator[Client]:
    client = connect(guarded.server.url, Access(user, password or guarded.passwords[user]))
    try:
        yield client
    finally:
        await client.aclose()
        await client.connection_pool.disconnect()


@pytest.mark.parametrize("user", USERS)
async def test_a_roles_user_can_do_all_that_the_queue_does(guarded: Guarded, user: str) -> None:
    async with client_of(guarded, user) as redis:
        queue, registry, limits = Queue(redis, model="test", num_shards=2), Registry(redis), RateLimits(redis)
        await queue.load()
        async with queue.bell() as bell:
            await bell.wait(0.01)
            await queue.put(request())
            assert await bell.wait(10)
        (claim,) = await queue.claim(W0, 1)
        await queue.renew(W0, [Held(claim.rid, claim.epoch, claim.attach, 1)])
        await queue.reserve(W0)
        await queue.release(W0, claim.rid, claim.epoch)
        await queue.cancel(claim.rid, tenant="alice", router_id="r0", attach=claim.attach, why="client")
        claim = await put_and_claim(queue, warm_key=b"w" * 32)
        await queue.put(request(warm_key=b"w" * 32))
        await queue.revoke(claim.router, claim.rid, W0, claim.epoch)
        await queue.reap()
        await queue.seen(W0)
        await queue.exited(W0)
        await queue.adopt(claim.rid, tenant="alice", router_id="r1")
        claim = await put_and_claim(queue)
        await queue.finish(W0, claim.rid, claim.epoch, claim.attach, "done", tenant="alice", usage=b"u")
        for ask in (queue.read([claim.rid]), queue.look(claim.rid), queue.dead(), queue.measure()):
            await ask
        await queue.pardon(claim.rid)
        await queue.discard(claim.rid)
        await registry.announce_router(RouterFacts("r", "b", "unix:/a"))
        await registry.announce_worker(WorkerFacts("w", "b"))
        assert await registry.router("r")
        await registry.routers()
        await registry.workers()
        await registry.withdraw_worker("w")
        await registry.withdraw_router("r")
        rates = Rates(f"of-{user}", 10, 1000)
        assert (await limits.enter(rates)).taken
        assert (await limits.charge(rates, "0" * 34, 10, 60)).taken
        assert (await limits.settle(rates, "0" * 34, 5)).taken
        store = Store(redis)
        for number in range(3):
            assert await store.write(user, "kind", f"id{number}", b"value", version=0, ttl_s=60, most=2)
        found = [stored.record_id for stored in await store.newest(user, "kind", limit=5)]
        assert found == ["id2", "id1"]
        assert await store.newest(user, "kind", limit=5, after="id2")
        assert await store.read(user, "kind", "id1")
        assert await store.delete(user, "kind", "id1")
        assert await store.hold(user, user, 5)


@pytest.mark.parametrize("user", USERS)
async def test_a_roles_user_can_do_nothing_dangerous_and_sees_no_other_keys(guarded: Guarded, user: str) -> None:
    """security.md 77: no CONFIG, DEBUG, FLUSHALL, KEYS, MODULE, ...: whatever this server calls dangerous or admin."""
    async with client_of(guarded, ADMIN) as admin, client_of(guarded, user) as redis:
        await admin.set("other:secret", "x")
        named: set[str] = set()
        for category in ("dangerous", "admin"):
            named |= {name.decode() for name in await admin.execute_command("ACL", "CAT", category)}
        assert {"config", "flushall", "keys", "module", "debug", "acl"} <= named
        for name in sorted(named - NEEDED_DANGER):
            (facts,) = (await admin.execute_command("COMMAND", "INFO", name)).values()
            with pytest.raises(NoPermissionError):
                await redis.execute_command(name, *["x"] * (abs(facts["arity"]) - 1))
        for command in (("GET", "other:secret"), ("SET", "other:x", "1"), ("DEL", "other:secret"), ("PUBLISH", "other", "x")):
            with pytest.raises(NoPermissionError):
                await redis.execute_command(*command)
        for script in ("return redis.call('GET', 'other:secret')", "return redis.call('FLUSHALL')"):
            with pytest.raises(ResponseError, match=r"(?i)permission|can't (run|access)"):
                await redis.execute_command("EVAL", script, "0")
        for subcommand in ("FLUSH", "KILL"):
            with pytest.raises(NoPermissionError):
                await redis.execute_command("SCRIPT", subcommand)


async def test_nobody_else_gets_in(guarded: Guarded) -> None:
    async with client_of(guarded, "router", "wrong") as redis:
        with pytest.raises(StartupError, match="Redis refuses us") as refused:
            await Queue(redis, model="test").load()
        assert "wrong" not in str(refused.value)
    stranger = connect(guarded.server.url)
    with pytest.raises(StartupError, match="write user and password"):
        await Queue(stranger, model="test").load()
    await stranger.aclose()
    await stranger.connection_pool.disconnect()


def test_what_scripts_and_clients_call_is_granted() -> None:
    """Who calls something new fails here, not at an operator's."""
    files = [file for room in ("shared", "services") for end in ("lua", "py") for file in (ROOT / room).rglob(f"*.{end}")]
    texts = [file.read_text() for file in files]
    called = {name.lower() for text in texts for name in re.findall(r"redis\.call\('(\w+)'", text)}
    assert len(called) > 15
    methods = {name for text in texts for name in re.findall(r"(?:\b_?redis|\bpipe)\.(\w+)\(", text)}
    called |= {{"delete": "del"}.get(name, name) for name in methods - NO_COMMANDS}
    assert {"smembers", "hmget", "del"} <= called
    for line in (ROOT / "deploy" / "redis.acl").read_text().splitlines()[1:]:
        assert called <= {word[1:] for word in line.split() if word.startswith("+")}
