"""How to reach Redis, which servers are good enough, and what its errors mean to a caller.

It knows nothing of the queue's keys or scripts.
"""

import asyncio
import ipaddress
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    ClusterError,
    NoPermissionError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.config import Settings
from shared.errors import StartupError, Unavailable
from shared.queue.address import Address, parse

Client = Redis | RedisCluster

log = logging.getLogger(__name__)

TIMEOUT_S = 2.0
SENTINEL_TIMEOUT_S = 0.5
MAX_CONNECTIONS = 16
RETRY_AFTER_S = 1.0

# First fixed release of each line (CVE-2025-49844 and its kin: crafted Lua takes over the server); reference/security.md.
FLOORS = {"redis": ((6, 2, 20), (7, 2, 11), (7, 4, 6), (8, 0, 4), (8, 2, 2)), "valkey": ((7, 2, 11), (8, 0, 6), (8, 1, 4))}
OLDEST = (6, 2, 0)

# What a server says when it cannot serve now, though the request is fine: by class when the reply is the error itself, by text
# when a script met it.
_NOT_NOW = (ReadOnlyError, TryAgainError)
_NOT_NOW_TEXT = ("READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MISCONF", "NOREPLICAS", "BUSY")
_FULL_TEXT = "command not allowed when used memory"
_REFUSALS = (AuthenticationError, NoPermissionError)


@dataclass(frozen=True, slots=True)
class Access:
    """Who we are to Redis, and whose word counts for who it is; each over what the address says."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None

    def settings(self, *, encrypted: bool) -> dict[str, Any]:
        """As redis-py's connections take it."""
        found = {"username": self.username, "password": self.password}
        if encrypted and self.ca_file is not None:
            found["ssl_ca_certs"] = str(self.ca_file)
        return {name: value for name, value in found.items() if value is not None}


def connect_as(settings: Settings) -> Client:
    """A client for the Redis of `settings`. Raises StartupError for a bad address, or files that cannot be read."""
    if settings.redis_url is None:
        raise StartupError("give --redis-url: the address of the Redis that the services share")
    password = None
    if settings.redis_password_file is not None:
        try:
            password = settings.redis_password_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            cause = (error.strerror or "refused").lower()
            raise StartupError(f"cannot read the password file {settings.redis_password_file}: {cause}") from None
    if settings.redis_ca_file is not None and not settings.redis_ca_file.is_file():
        raise StartupError(f"no such file of authorities: {settings.redis_ca_file} (setting redis_ca_file)")
    return connect(settings.redis_url, Access(settings.redis_username, password, settings.redis_ca_file))


def connect(redis_url: str, access: Access | None = None) -> Client:
    """A client for any address that address.py knows, connected at the first call. Raises StartupError for a bad one.

    Each call may take 2 seconds and is tried twice; at most 16 connections (to each server), for which further calls wait.
    """
    address, access = parse(redis_url), access or Access()
    if address.kind != "server":
        access = replace(access, username=access.username or address.username, password=access.password or address.password)
    match address.kind:
        case "sentinel":
            return Redis.from_pool(_primary_pool(address, access))
        case "cluster":
            return _Cluster(
                startup_nodes=[ClusterNode(host, port) for host, port in address.nodes],
                **address.tls,
                **access.settings(encrypted=bool(address.tls)),
                **_per_call(TIMEOUT_S, 2),
            )
    # No health_check_interval: redis-py 8.1 recurses without end when its check is refused while connecting (no password, server
    # still loading). The second try replaces a connection that died unnoticed.
    try:
        pool = BlockingConnectionPool.from_url(
            redis_url,
            max_connections=MAX_CONNECTIONS,
            timeout=TIMEOUT_S,
            **_per_call(TIMEOUT_S, 2),
        )
    except ValueError as error:
        raise StartupError(f"bad Redis address: {error}; write redis://host:6379/0 or unix:///path/to/socket") from error
    # After the address, which from_url lets win: what a file says is newer than what stands in an address.
    pool.connection_kwargs.update(access.settings(encrypted=redis_url.startswith("rediss://")))
    return Redis.from_pool(pool)


def _per_call(seconds: float, tries: int) -> dict[str, Any]:
    """Settings of connections: how long a call may take, and how often it is made if no answer comes."""
    return {"socket_timeout": seconds, "socket_connect_timeout": seconds, "retry": Retry(NoBackoff(), tries - 1)}


class _PrimaryPool(SentinelConnectionPool, BlockingConnectionPool):
    """Connections to whatever server the sentinels call primary when each is opened."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Ends the connections to sentinels, too, when all are to end."""
        await super().disconnect(inuse_connections)
        if inuse_connections:
            await self.sentinel_manager.aclose()


def _primary_pool(address: Address, access: Access) -> _PrimaryPool:
    sentinels = Access(address.sentinel_username, address.sentinel_password, access.ca_file)
    # A sentinel that does not answer must not use up the time of a call: there are others.
    encrypted = bool(address.tls)
    asking = {**_per_call(SENTINEL_TIMEOUT_S, 1), **address.tls, **sentinels.settings(encrypted=encrypted)}
    return _PrimaryPool(  # type: ignore[no-untyped-call]
        address.master,
        Sentinel(address.nodes, sentinel_kwargs=asking),  # type: ignore[no-untyped-call]
        **address.tls,
        **access.settings(encrypted=encrypted),
        db=address.db,
        max_connections=MAX_CONNECTIONS,
        timeout=TIMEOUT_S,
        **_per_call(TIMEOUT_S, 2),
    )


class _Cluster(RedisCluster):
    """A cluster's client that makes calls wait for each other where redis-py would refuse them."""

    def __init__(self, **settings: Any):
        super().__init__(max_connections=2 * MAX_CONNECTIONS, **settings)
        self._free = asyncio.Semaphore(MAX_CONNECTIONS)

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        """One command, when there is a connection for it."""
        async with self._free:
            return await super().execute_command(*args, **kwargs)


async def check_server(redis: Client) -> None:
    """Raises StartupError for a server that is too old to be exposed, or that would throw requests away under memory pressure."""
    try:
        if isinstance(redis, RedisCluster):
            await redis.initialize()
            infos = [await redis.info(target_nodes=node) for node in redis.get_primaries()]
        else:
            infos = [await redis.info()]
    except (RedisError, RedisClusterException) as error:
        if _is_refusal(error):
            raise StartupError(f"Redis refuses us ({error}); write user and password into its address") from error
        # Of sentinels it only has a text.
        if isinstance(error, MasterNotFoundError) and AuthenticationError.__name__ in str(error):
            wanted = "?sentinel_username=...&sentinel_password=..."
            raise StartupError(f"the sentinels refuse us; write {wanted} behind the address of Redis") from error
        raise
    for info in infos:
        _check_info(info, private=_is_private(redis))


def _is_refusal(error: BaseException | None) -> bool:
    """redis-py hides what went wrong while connecting behind a ConnectionError, or behind two errors of a cluster."""
    return error is not None and (isinstance(error, _REFUSALS) or _is_refusal(error.__cause__))


def _check_info(info: dict[str, Any], *, private: bool) -> None:
    _check_version(info, private=private)
    policy, limit = info.get("maxmemory_policy", "noeviction"), int(info.get("maxmemory", 0))
    if policy != "noeviction" and limit:
        raise StartupError(f"Redis has maxmemory-policy {policy}, which throws requests away; set it to noeviction")
    if policy != "noeviction":
        log.warning("Redis has maxmemory-policy %s; set it to noeviction before you set maxmemory", policy)


@asynccontextmanager
async def redis_errors() -> AsyncIterator[None]:
    """Turns trouble with Redis into Unavailable: queue_unavailable, or queue_full when it is out of memory."""
    try:
        yield
    except (RedisConnectionError, TimeoutError, OSError, RedisClusterException, ClusterError) as error:
        # The last two: no server of a cluster answers, nobody serves the slot, or they still disagree about who does.
        raise _unavailable("cannot be reached", "queue_unavailable") from error
    except ResponseError as error:
        text = str(error)
        if _FULL_TEXT in text:
            raise _unavailable("is full", "queue_full") from error
        if isinstance(error, _NOT_NOW) or any(word in text for word in _NOT_NOW_TEXT):
            raise _unavailable("does not accept work now", "queue_unavailable") from error
        raise


def _unavailable(what: str, code: str) -> Unavailable:
    return Unavailable(f"The request queue {what}; try again later.", code=code, retry_after_s=RETRY_AFTER_S)


def _check_version(info: dict[str, Any], *, private: bool) -> None:
    kind = "valkey" if "valkey_version" in info else "redis"
    text = str(info[f"{kind}_version"])
    version = tuple(int(part) for part in text.split(".")[:3])
    if version < OLDEST:
        raise StartupError(f"Redis {text} is too old; the queue needs 6.2 or later")
    if is_patched(kind, version):
        return
    needed = ", ".join(".".join(map(str, floor)) for floor in FLOORS[kind])
    if not private:
        raise StartupError(f"{kind} {text} has known holes and listens beyond this machine; update it to {needed} or later")
    log.warning("%s %s has known holes (reachable from this machine only); update it to %s or later", kind, text, needed)


def is_patched(kind: str, version: tuple[int, ...]) -> bool:
    """Whether `version` of "redis" or "valkey" is at or above the first fixed release of its line, or in a later line."""
    floors = FLOORS[kind]
    same_line = [floor for floor in floors if floor[:2] == version[:2]]
    return version >= same_line[0] if same_line else version > floors[-1]


def _is_private(redis: Client) -> bool:
    """Whether no connection can leave this machine."""
    if isinstance(redis, RedisCluster):
        return all(_is_local(node.host) for node in redis.get_nodes())
    pool = redis.connection_pool
    if isinstance(pool, SentinelConnectionPool):
        return pool.master_address is not None and _is_local(pool.master_address[0])
    kwargs = pool.connection_kwargs
    return "path" in kwargs or _is_local(str(kwargs.get("host", "localhost")))


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
