"""Whether a request that was quarantined really had three of its owners die at one token, as the nemesis' own records have it.

To the queue an innocent request whose worker is killed three times before anybody heard of a token more looks like poison,
and the protocol ends it. That is right only where it happened. What is asked: Redis's record of the request, the claims in
the workers' logs, and when which process ended. It knows nothing of what clients saw.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis.exceptions import RedisError

from tests.chaos.cluster import Cluster
from tests.chaos.history import Quarantined, Struck

# At the same token, and in all.
DEATHS, TOTAL_DEATHS = 3, 8
# A worker renews a quarter of a lease (5 s) after the last time; the rest is for a machine that is busy.
RENEWED_S = 4.0
# While one of these lasts, a worker cannot tell Redis how far it is, or makes nothing to tell.
REDIS_AWAY = {"redis_pause", "redis_slow", "redis_restart", "redis_down", "redis_full", "redis_disk_full", "redis_flush"}
MUFFLES = REDIS_AWAY | {"worker_without_redis", "freeze_worker", "blink_worker", "no_descriptors"}
ASK_S, ASKS = 0.5, 40
# `claimed` and what ends a claim, as workers log them.
LINE = re.compile(rb"worker: (claimed|ended|dropped|handed back) rid=(\w+)(?: epoch=(\d+))?")


@dataclass(frozen=True, slots=True)
class Death:
    """A process that ended while it had the request. Seconds of the clock of the day; Redis's, which is the same one."""

    worker: str
    claimed_at: float
    died_at: float


async def record_of(cluster: Cluster, rid: str) -> Mapping[str, int]:
    """What Redis knows of a request's deaths: crashes, total_crashes, died_at; empty if it has forgotten them."""
    names = ("crashes", "total_crashes", "died_at")
    for _ in range(ASKS):
        try:
            async for key in cluster.redis.scan_iter(match=f"rt:*:r:{rid}", count=1000):
                values = await cast(Any, cluster.redis).hmget(key, *names)
                return {name: int(value or 0) for name, value in zip(names, values, strict=True)}
            return {}
        except (RedisError, OSError):
            await asyncio.sleep(ASK_S)
    return {}


def deaths_of(cluster: Cluster, rid: str) -> list[Death]:
    """Every worker's process that claimed the request and ended before it was rid of it, in the order they claimed it."""
    found = []
    for worker in cluster.names("worker"):
        service = cluster.services[worker]
        text = service.log.read_bytes()
        for life in service.exits:
            claimed_at = open_claim(text[slice(*life.log)], rid)
            if claimed_at is not None:
                found.append(Death(worker, claimed_at, life.ended_at))
    return sorted(found, key=lambda death: death.claimed_at)


def open_claim(log: bytes, rid: str) -> float | None:
    """When the process that wrote `log` claimed the request that it had to its end. An epoch is Redis's time of the claim."""
    claimed_at = None
    for verb, name, epoch in LINE.findall(log):
        if name == rid.encode():
            claimed_at = int(epoch) / 1e6 if verb == b"claimed" else None
    return claimed_at


def unjustified(ended: Quarantined, deaths: Sequence[Death], struck: Sequence[Struck], day_s: float) -> str:
    """Why this quarantine was wrong, "" if it was right. day_s: the clock of the day less the monotonic one."""
    record = ended.record
    everywhere = record.get("total_crashes", 0) >= TOTAL_DEATHS
    if record.get("crashes", 0) < DEATHS and not everywhere:
        return f"Redis counts {dict(record)}"
    if len(deaths) < (TOTAL_DEATHS if everywhere else DEATHS):
        return f"{len(deaths)} of its workers died: {deaths}"
    if everywhere:
        return ""
    last = deaths[-1]
    muffled_s = sum(
        max(0.0, min(last.died_at, each.healed_at + day_s) - max(last.claimed_at, each.at + day_s))
        for each in struck
        if each.kind in MUFFLES
    )
    # The last one ran it alone. Had it told of a token more, as it does when it renews, none of the deaths would count.
    if (worked_s := last.died_at - last.claimed_at - muffled_s) > RENEWED_S:
        return f"its last worker was at it for {worked_s:.1f} s and told of nothing: {deaths}"
    return ""
