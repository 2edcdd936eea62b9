"""Request ids: two hex digits of shard and 128 bits, random or derived from an idempotency key.

A derived rid is the same on every router and after Redis lost everything, so one key never becomes two requests. It knows
nothing of Redis.
"""

import hashlib
import hmac
import re
import secrets

MAX_SHARDS = 256

_RID = re.compile(r"[0-9a-f]{34}")


def new_rid(num_shards: int = 1) -> str:
    """A random rid, in any of `num_shards` (1 to 256) shards."""
    return _of_bytes(secrets.token_bytes(17), num_shards)


def rid_for_key(secret: bytes, tenant: str, key: str, num_shards: int = 1) -> str:
    """The one rid of (tenant, idempotency key); nobody without `secret` can compute or guess it."""
    name = tenant.encode()
    message = b"roadtrain.rid\0" + len(name).to_bytes(4, "little") + name + key.encode()
    return _of_bytes(hmac.digest(secret, message, hashlib.sha256)[:17], num_shards)


def is_rid(text: str) -> bool:
    """Whether `text` has the form of a rid; checked before it becomes part of a Redis key."""
    return _RID.fullmatch(text) is not None


def shard_of(rid: str) -> int:
    """The shard a rid names."""
    return int(rid[:2], 16)


def _of_bytes(random: bytes, num_shards: int) -> str:
    if not 1 <= num_shards <= MAX_SHARDS:
        raise ValueError(f"{num_shards} shards are not 1 to {MAX_SHARDS}")
    return f"{random[-1] % num_shards:02x}{random[:16].hex()}"
