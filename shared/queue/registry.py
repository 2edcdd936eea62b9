"""Who is there: routers and workers announce themselves, 10 seconds at a time.

Outside the queues' hash tags, because one router or worker serves all shards; so in a cluster each key has its own place.
Death of a worker is not proven here but by Queue.seen and the suspects of a record. It knows nothing of what the facts mean.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import msgspec

from shared.queue.connection import Client, redis_errors

TTL_S = 10
ANNOUNCE_EVERY_S = 3
_INDEX_TTL_S = 3600


@dataclass(frozen=True, slots=True)
class RouterFacts:
    """Where workers and other routers dial a router: "host:port" or "unix:/path"."""

    router_id: str
    boot_id: str
    deliver_address: str


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """A worker and what it says of itself: model, fingerprint, admin address, room, in plain JSON values."""

    worker_id: str
    boot_id: str
    facts: Mapping[str, Any] = field(default_factory=dict)


class Registry:
    """Announce yourself about every 3 seconds; read the others. Raises Unavailable when Redis cannot be asked."""

    def __init__(self, redis: Client):
        self._redis = redis

    async def announce_router(self, facts: RouterFacts) -> None:
        """This router is up and can be dialled."""
        await self._announce("router", facts.router_id, facts)

    async def announce_worker(self, facts: WorkerFacts) -> None:
        """This worker is up."""
        await self._announce("worker", facts.worker_id, facts)

    async def withdraw_router(self, router_id: str) -> None:
        """This router leaves; nobody should dial it any more."""
        await self._withdraw("router", router_id)

    async def withdraw_worker(self, worker_id: str) -> None:
        """This worker leaves."""
        await self._withdraw("worker", worker_id)

    async def router(self, router_id: str) -> RouterFacts | None:
        """Where that router is, None if it has not been heard of for 10 seconds."""
        async with redis_errors():
            value = await self._redis.get(f"rt:router:{router_id}")
        return None if value is None else msgspec.json.decode(value, type=RouterFacts)

    async def routers(self) -> list[RouterFacts]:
        """All routers that are up, by id."""
        return [msgspec.json.decode(value, type=RouterFacts) for value in await self._all("router")]

    async def workers(self) -> list[WorkerFacts]:
        """All workers that are up, by id."""
        return [msgspec.json.decode(value, type=WorkerFacts) for value in await self._all("worker")]

    async def _announce(self, kind: str, name: str, facts: RouterFacts | WorkerFacts) -> None:
        async with redis_errors():
            pipe = self._redis.pipeline(transaction=False)
            pipe.set(f"rt:{kind}:{name}", msgspec.json.encode(asdict(facts)), ex=TTL_S)
            pipe.sadd(f"rt:{kind}s", name)
            pipe.expire(f"rt:{kind}s", _INDEX_TTL_S)
            await pipe.execute()

    async def _withdraw(self, kind: str, name: str) -> None:
        async with redis_errors():
            pipe = self._redis.pipeline(transaction=False)
            pipe.delete(f"rt:{kind}:{name}")
            pipe.srem(f"rt:{kind}s", name)
            await pipe.execute()

    async def _all(self, kind: str) -> list[bytes]:
        async with redis_errors():
            names = sorted(await cast(Any, self._redis.smembers(f"rt:{kind}s")))
            if not names:
                return []
            # Not MGET: each may stand in another slot of a cluster.
            pipe = self._redis.pipeline(transaction=False)
            for name in names:
                pipe.get(f"rt:{kind}:".encode() + name)
            values: list[bytes | None] = await pipe.execute()
            silent = [name for name, value in zip(names, values, strict=True) if value is None]
            if silent:
                await cast(Any, self._redis.srem(f"rt:{kind}s", *silent))
        return [value for value in values if value is not None]
