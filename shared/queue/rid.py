"""Request ids: two hex digits of shard and 128 bits, random or derived from an idempotency key.

A derived rid is the same on every router and after Redis lost everything, so one key never becomes two requests. It knows
nothing of Redis.
"""

import hashlib
import hmac
import re
import secrets

_RID = re.compile(r"[0-9a-f]{34}")


def new_rid(shard: int = 0) -> str:
    """A random rid of `shard` (0 to 255)."""
    return _with_shard(shard, secrets.token_hex(16))


def rid_for_key(secret: bytes, tenant: str, key: str, shard: int = 0) -> str:
    """The one rid of (tenant, idempotency key); nobody without `secret` can compute or guess it."""
    name = tenant.encode()
    message = b"roadtrain.rid\0" + len(name).to_bytes(4, "little") + name + key.encode()
    return _with_shard(shard, hmac.digest(secret, message, hashlib.sha256)[:16].hex())


def is_rid(text: str) -> bool:
    """Whether `text` has the form of a rid; checked before it becomes part of a Redis key."""
    return _RID.fullmatch(text) is not None


def shard_of(rid: str) -> int:
    """The shard a rid names."""
    return int(rid[:2], 16)


def _with_shard(shard: int, digits: str) -> str:
    if not 0 <= shard <= 255:
        raise ValueError(f"shard {shard} is not within 0 to 255")
    return f"{shard:02x}{digits}"
