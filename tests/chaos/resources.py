"""Faults of what a process is given by its machine: the clock, the disk, descriptors. As in nemesis.py, each heals itself.

It knows the cluster's processes, and nothing of what clients do meanwhile.
"""

import asyncio
import contextlib
import random
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.chaos import rest
from tests.chaos.cluster import LAUNCHER, Cluster
from tests.chaos.nemesis import Fault, kill

SPARE = 2
RLIMITS = {"disk": resource.RLIMIT_FSIZE, "descriptors": resource.RLIMIT_NOFILE}


def libfaketime() -> Path | None:
    """Debian's library that lies about the time to whoever loads it first."""
    return next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


@contextlib.contextmanager
def limited(pid: int, what: str, most: int) -> Iterator[None]:
    """A running process with a lower limit."""
    kind = RLIMITS[what]
    # Two such faults may overlap: what the later one finds is the earlier one's doing, and both restore what the machine allows.
    _, allowed = resource.getrlimit(kind)
    resource.prlimit(pid, kind, (most, allowed))
    try:
        yield
    finally:
        # It may have died meanwhile; its successor was never limited.
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, kind, (allowed, allowed))


async def clock_skew(cluster: Cluster, rng: random.Random) -> str:
    """F18: a worker or router starts again with a clock that is wrong by up to a day, works, and is set right."""
    library = libfaketime()
    if library is None:
        return "skipped: there is no libfaketime; apt-get install faketime"
    name = rng.choice(cluster.names("worker") + cluster.names("router"))
    off_s = rng.choice((-1, 1)) * 10 ** rng.uniform(0, 5)
    service = cluster.services[name]
    # Only the clock of the day is wrong: no machine's monotonic clock jumps.
    lies = {"LD_PRELOAD": str(library), "FAKETIME": f"{off_s:+.1f}", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    service.environment |= lies
    service.module = "tests.chaos.skewed"
    try:
        await kill(cluster, name)
        await asyncio.sleep(rng.uniform(4, 7))
    finally:
        service.module = LAUNCHER
        for each in lies:
            service.environment.pop(each, None)
    await kill(cluster, name)
    return f"{name}, {off_s:+.1f} s"


async def redis_disk_full(cluster: Cluster, rng: random.Random) -> str:
    """F23: the append-only file cannot grow; Redis refuses writes until it can."""
    pid, file = cluster.services["redis"].pid, cluster.folder / "appendonly.aof"
    if pid is None:
        return "redis was not there"
    with contextlib.suppress(ProcessLookupError), limited(pid, "disk", file.stat().st_size):
        await asyncio.sleep(rng.uniform(2, 4))
    return "no byte more for the append-only file"


async def log_disk_full(cluster: Cluster, rng: random.Random) -> str:
    """F23: a service cannot write its log."""
    name = rng.choice([name for name in cluster.services if name != "redis"])
    pid = cluster.services[name].pid
    if pid is None:
        return f"{name} was not there"
    with contextlib.suppress(ProcessLookupError), limited(pid, "disk", 1):
        await asyncio.sleep(rng.uniform(2, 4))
    return name


async def no_descriptors(cluster: Cluster, rng: random.Random) -> str:
    """F31: two more files or connections, and no more. What runs lives on; gRPC ends a process that has only begun."""
    name = rng.choice([name for name in cluster.services if name != "redis"])
    pid = cluster.services[name].pid
    if pid is None:
        return f"{name} was not there"
    cluster.services[name].starved.add(cluster.services[name].starts)
    with contextlib.suppress(ProcessLookupError, FileNotFoundError), limited(pid, "descriptors", rest.open_files(pid) + SPARE):
        await asyncio.sleep(rng.uniform(2, 4))
    return name


RESOURCE_FAULTS: Mapping[str, Fault] = {
    "clock_skew": clock_skew,
    "redis_disk_full": redis_disk_full,
    "log_disk_full": log_disk_full,
    "no_descriptors": no_descriptors,
}
