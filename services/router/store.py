"""Small records that outlive a request and a router: what files, batches and stored responses are, each with an expiry.

A record belongs to one tenant and can be found by that tenant alone. Its value is bytes; its version grows by one with each
change, so that two routers never overwrite each other unseen. All keys of a tenant stand in one slot of a cluster. It knows
nothing of what the values mean.

    rt:{store/<tenant>}:<kind>:<id>   hash: version, value
    rt:{store/<tenant>}:<kind>        sorted set of ids, by when they were made; entries whose record expired are removed when met
    rt:lease:<name>                   who does something that one process at a time should do
"""

import hashlib
from dataclasses import dataclass
from typing import Any, cast

from shared.queue.connection import Client, redis_errors

# Of one tenant and kind: what anyone can store must not fill Redis.
MAX_RECORDS = 10_000

# Writes if the version is the one expected (0: there is no record), else changes nothing. Returns whether the value stands,
# also when a write whose answer was lost is sent again.
_WRITE = """
local version = tonumber(redis.call('HGET', KEYS[1], 'version') or '0')
if version ~= tonumber(ARGV[1]) then
    return version == ARGV[1] + 1 and redis.call('HGET', KEYS[1], 'value') == ARGV[2] and 1 or 0
end
redis.call('HSET', KEYS[1], 'version', version + 1, 'value', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
if version == 0 then
    local now = redis.call('TIME')
    redis.call('ZADD', KEYS[2], now[1] * 1000000 + now[2], ARGV[4])
    while redis.call('ZCARD', KEYS[2]) > tonumber(ARGV[5]) do
        redis.call('DEL', KEYS[2] .. ':' .. redis.call('ZPOPMIN', KEYS[2])[1])
    end
end
if redis.call('TTL', KEYS[2]) < tonumber(ARGV[3]) then redis.call('EXPIRE', KEYS[2], ARGV[3]) end
return 1
"""

# Takes or keeps a lease. Returns whether it is the caller's.
_HOLD = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""


@dataclass(frozen=True, slots=True)
class Stored:
    """One record as it was read."""

    record_id: str
    version: int
    value: bytes


class Store:
    """Records of all tenants. Every method raises Unavailable when Redis cannot be asked."""

    def __init__(self, redis: Client):
        self._redis = redis
        self._write = redis.register_script(_WRITE)
        self._hold = redis.register_script(_HOLD)

    async def write(
        self, tenant: str, kind: str, record_id: str, value: bytes, *, version: int, ttl_s: int, most: int = MAX_RECORDS
    ) -> bool:
        """Writes over the record of that version (0: where there is none) and lets it live ttl_s more; False if it changed.

        Of a tenant's records of that kind the newest `most` are kept.
        """
        index = _index(tenant, kind)
        async with redis_errors():
            return bool(await self._write(keys=[f"{index}:{record_id}", index], args=[version, value, ttl_s, record_id, most]))

    async def read(self, tenant: str, kind: str, record_id: str) -> Stored | None:
        """The record, or None if this tenant has none of that id."""
        async with redis_errors():
            version, value = await cast(Any, self._redis.hmget(f"{_index(tenant, kind)}:{record_id}", ["version", "value"]))
        return None if value is None else Stored(record_id, int(version), value)

    async def delete(self, tenant: str, kind: str, record_id: str) -> bool:
        """Whether there was one."""
        index = _index(tenant, kind)
        async with redis_errors():
            pipe = self._redis.pipeline(transaction=False)
            pipe.delete(f"{index}:{record_id}")
            pipe.zrem(index, record_id)
            return bool((await pipe.execute())[0])

    async def newest(self, tenant: str, kind: str, *, limit: int, after: str | None = None) -> list[Stored]:
        """Up to `limit` records of a tenant, newest first, those made before `after` if it is given; none for an unknown one."""
        index = _index(tenant, kind)
        async with redis_errors():
            start = 0
            if after is not None:
                rank = await cast(Any, self._redis.zrevrank(index, after))
                if rank is None:
                    return []
                start = rank + 1
            found: list[Stored] = []
            while len(found) < limit:
                names = await cast(Any, self._redis.zrevrange(index, start, start + limit - 1))
                if not names:
                    break
                gone = [name for name in names if not await self._collect(index, name.decode(), found, limit)]
                if gone:
                    await cast(Any, self._redis.zrem(index, *gone))
                start += len(names) - len(gone)
            return found

    async def hold(self, name: str, holder: str, ttl_s: float) -> bool:
        """Takes the lease `name`, or keeps it for ttl_s more; False if another has it. Who needs certainty must not need this."""
        async with redis_errors():
            return bool(await self._hold(keys=[f"rt:lease:{name}"], args=[holder, int(ttl_s * 1000)]))

    async def _collect(self, index: str, record_id: str, found: list[Stored], limit: int) -> bool:
        """Appends the record if there is room; False if it has expired."""
        version, value = await cast(Any, self._redis.hmget(f"{index}:{record_id}", ["version", "value"]))
        if value is None:
            return False
        if len(found) < limit:
            found.append(Stored(record_id, int(version), value))
        return True


def _index(tenant: str, kind: str) -> str:
    # A tenant's name may hold anything; a hash holds no braces.
    return f"rt:{{store/{hashlib.sha256(tenant.encode()).hexdigest()[:32]}}}:{kind}"
