"""The faults, each a coroutine that strikes and heals, and the schedule that a seed draws from them.

A fault must be over when it returns: whatever it froze, held or filled is as before. It knows the cluster, and nothing of
what clients do meanwhile.
"""

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

import grpc
from redis.exceptions import RedisError

from shared.rpc import connect
from tests.chaos.cluster import Cluster
from tests.chaos.history import Struck
from tests.chaos.proxy import Proxy

LEASE_S = 5.0
Fault = Callable[[Cluster, random.Random], Awaitable[str]]


async def kill(cluster: Cluster, name: str) -> str:
    """SIGKILL, and wait until its successor runs."""
    service = cluster.services[name]
    starts = service.starts
    service.signal(signal.SIGKILL)
    while service.starts == starts:
        await asyncio.sleep(0.02)
    return name


async def _freeze(cluster: Cluster, name: str, seconds: float) -> str:
    service = cluster.services[name]
    if not service.signal(signal.SIGSTOP):
        return f"{name} was not there"
    try:
        await asyncio.sleep(seconds)
    finally:
        service.signal(signal.SIGCONT)
    return f"{name} for {seconds:.1f} s"


def _one(cluster: Cluster, rng: random.Random, role: str) -> str:
    return rng.choice(cluster.names(role))


async def kill_worker(cluster: Cluster, rng: random.Random) -> str:
    """F1, F2."""
    return await kill(cluster, _one(cluster, rng, "worker"))


async def kill_all_workers(cluster: Cluster, rng: random.Random) -> str:
    """F28."""
    return ", ".join(await asyncio.gather(*(kill(cluster, name) for name in cluster.names("worker"))))


async def freeze_worker(cluster: Cluster, rng: random.Random) -> str:
    """F3, long enough for its lease to run out."""
    return await _freeze(cluster, _one(cluster, rng, "worker"), LEASE_S + rng.uniform(1, 3))


async def blink_worker(cluster: Cluster, rng: random.Random) -> str:
    """F3, shorter than a lease."""
    return await _freeze(cluster, _one(cluster, rng, "worker"), rng.uniform(0.2, 3))


async def drain_worker(cluster: Cluster, rng: random.Random) -> str:
    """F24: SIGTERM; it hands over and ends with 0."""
    return await _terminate(cluster, _one(cluster, rng, "worker"))


async def drain_router(cluster: Cluster, rng: random.Random) -> str:
    """F24."""
    return await _terminate(cluster, _one(cluster, rng, "router"))


async def _terminate(cluster: Cluster, name: str) -> str:
    service = cluster.services[name]
    starts = service.starts
    service.signal(signal.SIGTERM)
    while service.starts == starts:
        await asyncio.sleep(0.05)
    return f"{name}, exit {service.exits[-1].code}"


async def kill_router(cluster: Cluster, rng: random.Random) -> str:
    """F10."""
    return await kill(cluster, _one(cluster, rng, "router"))


async def freeze_router(cluster: Cluster, rng: random.Random) -> str:
    """F10, for a while."""
    return await _freeze(cluster, _one(cluster, rng, "router"), rng.uniform(0.5, 7))


async def kill_tokenizer(cluster: Cluster, rng: random.Random) -> str:
    """F11."""
    return await kill(cluster, _one(cluster, rng, "tokenizer"))


async def freeze_tokenizer(cluster: Cluster, rng: random.Random) -> str:
    """F11."""
    return await _freeze(cluster, _one(cluster, rng, "tokenizer"), rng.uniform(0.5, 4))


def _cable(cluster: Cluster, rng: random.Random) -> tuple[str, Proxy]:
    pair = rng.choice(sorted(cluster.deliver_proxies))
    return " - ".join(pair), cluster.deliver_proxies[pair]


async def reset_delivery(cluster: Cluster, rng: random.Random) -> str:
    """F12: the stream breaks; the worker dials again."""
    name, proxy = _cable(cluster, rng)
    return f"{name}, {proxy.reset()} connections"


async def cut_delivery(cluster: Cluster, rng: random.Random) -> str:
    """F12: the stream breaks and cannot be dialled for a while, so its requests are revoked."""
    name, proxy = _cable(cluster, rng)
    seconds = rng.uniform(0.5, 3)
    proxy.hold()
    proxy.reset()
    try:
        await asyncio.sleep(seconds)
    finally:
        proxy.heal()
    return f"{name} for {seconds:.1f} s"


async def half_open_delivery(cluster: Cluster, rng: random.Random) -> str:
    """F12: nothing arrives and nobody is told."""
    name, proxy = _cable(cluster, rng)
    return await _held([proxy], name, rng.uniform(0.5, 4))


async def slow_delivery(cluster: Cluster, rng: random.Random) -> str:
    """Delay, then a thin line, between every worker and one router."""
    router = _one(cluster, rng, "router")
    proxies = [proxy for (_, far), proxy in cluster.deliver_proxies.items() if far == router]
    try:
        for proxy in proxies:
            proxy.delay_s = 0.2
        await asyncio.sleep(1.5)
        for proxy in proxies:
            proxy.delay_s, proxy.bytes_per_s = 0.0, 5000.0
        await asyncio.sleep(1.5)
    finally:
        for proxy in proxies:
            proxy.heal()
    return f"{router}: 200 ms, then 5 kB/s"


async def _held(proxies: Sequence[Proxy], name: str, seconds: float) -> str:
    for proxy in proxies:
        proxy.hold()
    try:
        await asyncio.sleep(seconds)
    finally:
        for proxy in proxies:
            proxy.heal()
    return f"{name} for {seconds:.1f} s"


async def worker_without_redis(cluster: Cluster, rng: random.Random) -> str:
    """F13: past its lease, so another claims while this one still streams."""
    name = _one(cluster, rng, "worker")
    return await _held([cluster.redis_proxies[name]], name, LEASE_S + rng.uniform(1, 3))


async def router_without_redis(cluster: Cluster, rng: random.Random) -> str:
    """F13 from the router's end."""
    name = _one(cluster, rng, "router")
    return await _held([cluster.redis_proxies[name]], name, rng.uniform(1, 6))


async def redis_pause(cluster: Cluster, rng: random.Random) -> str:
    """CLIENT PAUSE: every command waits."""
    milliseconds = rng.randrange(500, 4000)
    await cast(Any, cluster.redis).client_pause(milliseconds)
    await asyncio.sleep(milliseconds / 1000)
    return f"{milliseconds} ms"


async def redis_slow(cluster: Cluster, rng: random.Random) -> str:
    """F8: every exchange with Redis takes a second."""
    proxies = list(cluster.redis_proxies.values())
    for proxy in proxies:
        proxy.delay_s = 0.25
    try:
        await asyncio.sleep(3)
    finally:
        for proxy in proxies:
            proxy.heal()
    return "500 ms a round trip for 3 s"


async def redis_restart(cluster: Cluster, rng: random.Random) -> str:
    """F5: killed and started from its append-only file, which may lack the last second."""
    await kill(cluster, "redis")
    await _redis_answers(cluster)
    return "kill -9, append-only file kept"


async def redis_down(cluster: Cluster, rng: random.Random) -> str:
    """F5: longer than a lease."""
    return await _freeze(cluster, "redis", LEASE_S + rng.uniform(1, 4))


async def redis_flush(cluster: Cluster, rng: random.Random) -> str:
    """F6."""
    await cast(Any, cluster.redis).flushall()
    return "everything forgotten"


async def redis_full(cluster: Cluster, rng: random.Random) -> str:
    """F9: no write that needs memory is taken."""
    redis = cast(Any, cluster.redis)
    try:
        await redis.config_set("maxmemory", 1)
        await asyncio.sleep(rng.uniform(1, 4))
    finally:
        # A command that a frozen server did not answer is carried out when it thaws; so it is set right until it stays so.
        while not await _has_room(cluster):
            await asyncio.sleep(0.2)
    return "maxmemory 1"


async def _has_room(cluster: Cluster) -> bool:
    """Whether Redis has its memory back, and had before this gave it back."""
    redis, enough = cast(Any, cluster.redis), 2**30
    with contextlib.suppress(RedisError, OSError):
        had = int((await redis.config_get("maxmemory"))["maxmemory"])
        await redis.config_set("maxmemory", enough)
        return had == enough
    return False


async def _redis_answers(cluster: Cluster) -> None:
    while True:
        with contextlib.suppress(RedisError, OSError):
            if await cast(Any, cluster.redis).ping():
                return
        await asyncio.sleep(0.05)


async def garbage_delivery(cluster: Cluster, rng: random.Random) -> str:
    """F30: bytes that are no message, and a version nobody speaks, on the Deliver port."""
    router = _one(cluster, rng, "router")
    told = []
    async with connect(f"unix:{cluster.deliver_socket(router)}") as channel:
        for _ in range(8):
            junk = rng.choice((rng.randbytes(rng.randrange(1, 400)), b"\x0a\x02\x08\x63", b"\x0a\x07\x08\x01\x12\x01w\x1a\x01b"))
            call = channel.stream_stream("/roadtrain.Delivery/Deliver")(iter_of([junk, rng.randbytes(64)]))
            try:
                async with asyncio.timeout(2):
                    async for _ in call:
                        pass
                told.append("accepted")
            except TimeoutError:
                told.append("silence")
            except grpc.aio.AioRpcError as error:
                told.append(error.code().name)
            finally:
                call.cancel()
    return f"{router}: {', '.join(sorted(set(told)))}"


async def iter_of(messages: Sequence[bytes]) -> Any:
    """Those messages, as a stream."""
    for message in messages:
        yield message


FAULTS: Mapping[str, Fault] = {
    "kill_worker": kill_worker,
    "blink_worker": blink_worker,
    "freeze_worker": freeze_worker,
    "drain_worker": drain_worker,
    "kill_router": kill_router,
    "freeze_router": freeze_router,
    "drain_router": drain_router,
    "kill_tokenizer": kill_tokenizer,
    "freeze_tokenizer": freeze_tokenizer,
    "reset_delivery": reset_delivery,
    "cut_delivery": cut_delivery,
    "half_open_delivery": half_open_delivery,
    "slow_delivery": slow_delivery,
    "worker_without_redis": worker_without_redis,
    "router_without_redis": router_without_redis,
    "redis_pause": redis_pause,
    "redis_slow": redis_slow,
    "redis_restart": redis_restart,
    "redis_down": redis_down,
    "redis_flush": redis_flush,
    "redis_full": redis_full,
    "garbage_delivery": garbage_delivery,
    "kill_all_workers": kill_all_workers,
}


class Nemesis:
    """Strikes as a seed says, and keeps a list."""

    def __init__(self, cluster: Cluster, seed: int, faults: Mapping[str, Fault] = FAULTS):
        self.struck: list[Struck] = []
        self._cluster = cluster
        self._faults = faults
        self._kinds = list(faults)
        self._rng = random.Random(seed)

    async def each_once(self, side_by_side: int) -> None:
        """Every kind once, in an order of the seed's, a few at a time."""
        kinds = list(self._kinds)
        self._rng.shuffle(kinds)
        strikes = iter([(kind, random.Random(self._rng.random())) for kind in kinds])

        async def lane() -> None:
            for kind, rng in strikes:
                await self.strike(kind, rng)
                await asyncio.sleep(0.2)

        await asyncio.gather(*(lane() for _ in range(side_by_side)))

    async def at_random(self, seconds: float, every_s: float) -> None:
        """Kinds drawn at random moments, some on top of others, for `seconds`; returns when the last has healed."""
        end = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            while time.monotonic() < end:
                kind, rng = self._rng.choice(self._kinds), random.Random(self._rng.random())
                group.create_task(self.strike(kind, rng))
                await asyncio.sleep(self._rng.uniform(0.5, 1.5) * every_s)

    async def strike(self, kind: str, rng: random.Random) -> Struck:
        """One fault from blow to healing."""
        struck = Struck(kind, time.monotonic())
        self.struck.append(struck)
        try:
            struck.detail = await self._faults[kind](self._cluster, rng)
        except (RedisError, OSError) as error:
            struck.detail = f"could not: {error!r}"
        struck.healed_at = time.monotonic()
        return struck
