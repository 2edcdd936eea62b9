"""What is left when every client is gone: N5, no leak at rest.

It knows the record's fields and where each service shows its state, and nothing of faults.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from services.launcher.supervise import EXIT_CONFIG
from tests.chaos.cluster import Cluster

INDEXES = ("leases", "waiting", "solo", "parked", "deadlines", "affine", "errand-batch", "errand-response")
# Connections to Redis that are kept for the next command, up to 16 for each process, and its end of them all.
SPARE_FILES = {"redis": 120, "worker": 40, "router": 40, "tokenizer": 40}
SPARE_TASKS = 24
START_S = 15.0


async def leaks(cluster: Cluster) -> list[str]:
    """Everything that should not be there when nobody asks for anything."""
    found = []
    for worker in cluster.names("worker"):
        status = await cluster.status(worker)
        if status is None:
            found.append(f"N5 {worker} does not answer")
        elif status.num_running or status.num_waiting or status.num_free_blocks != status.num_blocks:
            taken = status.num_blocks - status.num_free_blocks
            found.append(f"N5 {worker}: {status.num_running} running, {status.num_waiting} waiting, {taken} blocks taken")
    for router in cluster.names("router"):
        num_open = await _gauge(cluster, router, "open_requests")
        # The call that asks is one itself.
        if num_open != 1:
            found.append(f"N5 {router}: {num_open - 1:.0f} calls open")
    return found + await _records(cluster)


async def _gauge(cluster: Cluster, router: str, name: str) -> float:
    """One number of a router's metrics page."""
    page = await cluster.metrics(router)
    return next(float(line.split()[-1]) for line in page.splitlines() if line.startswith(f"roadtrain_router_{name} "))


async def _records(cluster: Cluster) -> list[str]:
    redis = cast(Any, cluster.redis)
    found = []
    async for key in redis.scan_iter(match="rt:*", count=1000):
        _, _, name = key.decode().partition("}:")
        if not name:
            continue
        if name.startswith("r:"):
            state, owner = await redis.hmget(key, "state", "owner")
            if state in (b"queued", b"running"):
                found.append(f"N5 record {name[2:]} is {state.decode()} (owner {(owner or b'').decode()})")
        elif name in INDEXES or name.startswith("waiting:"):
            if size := await redis.zcard(key):
                found.append(f"N5 {name} holds {size}")
        elif (name.startswith("tenant:") or name == "load") and (num := int(await redis.hget(key, "num") or 0)):
            found.append(f"N5 {name} counts {num}")
    return found


async def until_quiet(cluster: Cluster, timeout_s: float) -> tuple[list[str], float]:
    """Waits for rest; what is left of leaks at the end of the wait, and seconds it took."""
    began_at = time.monotonic()
    while True:
        try:
            found = await leaks(cluster)
        except (OSError, StopIteration) as error:
            found = [f"N5 could not look: {error!r}"]
        waited_s = time.monotonic() - began_at
        if not found or waited_s > timeout_s:
            return found, waited_s
        await asyncio.sleep(0.2)


@dataclass(frozen=True, slots=True)
class Holdings:
    """What one process has open: descriptors, sockets among them, and tasks on its event loop (0: it has none or tells none)."""

    files: int
    sockets: int
    tasks: int


async def holdings(cluster: Cluster) -> dict[str, Holdings]:
    """What each service has open now."""
    found = {}
    for name, service in cluster.services.items():
        if service.pid is None:
            continue
        tasks = 0
        if name in cluster.names("worker"):
            status = await cluster.status(name)
            tasks = status.num_tasks if status is not None else 0
        elif name in cluster.names("router"):
            tasks = int(await _gauge(cluster, name, "tasks"))
        found[name] = Holdings(open_files(service.pid), open_files(service.pid, "socket:"), tasks)
    return found


def open_files(pid: int, kind: str = "") -> int:
    """Descriptors a process holds; `kind`: only those of one kind, "socket:"."""
    if not kind:
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    found = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += os.readlink(entry).startswith(kind)
    return found


def resident_mib(pid: int) -> float:
    """Memory a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def grown(before: Mapping[str, Holdings], now: Mapping[str, Holdings]) -> list[str]:
    """Processes that hold more descriptors, sockets or tasks than when they were first ready, beyond what is kept for reuse."""
    found = []
    for name, then in before.items():
        spare, held = SPARE_FILES[name.partition("-")[0]], now.get(name, then)
        if held.files > then.files + spare or held.sockets > then.sockets + spare or held.tasks > then.tasks + SPARE_TASKS:
            found.append(f"N5 {name}: {held}, when it was first ready {then}")
    return found


def crashes(cluster: Cluster) -> list[str]:
    """Exits nobody caused. A process ends by SIGKILL or in order; while it starts also by SIGTERM, or for want of a Redis.

    Without descriptors gRPC aborts, or meets its own null pointer, while a process starts.
    """
    found = []
    for name, service in cluster.services.items():
        for number, (code, ran_s, _, _) in enumerate(service.exits, start=1):
            too_early = ran_s < START_S and code in (-signal.SIGTERM, EXIT_CONFIG)
            starved = number in service.starved and code in (-signal.SIGABRT, -signal.SIGSEGV)
            if code not in (0, -signal.SIGKILL) and not too_early and not starved:
                found.append(f"{name} exited with {code} after {ran_s:.1f} s; see its log")
    return found
