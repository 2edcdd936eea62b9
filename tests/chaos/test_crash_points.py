"""Every step of the protocol at which a process may die: one dies there, once, under streams, which go on token-exact.

The steps are read from the source, so that a new one is swept as soon as it is written.
"""

import ast
import asyncio
import itertools
import random
import signal
import time
from pathlib import Path
from typing import Any, cast

import pytest

from tests.chaos import nemesis
from tests.chaos.cluster import Cluster, Plan
from tests.chaos.nemesis import Fault
from tests.chaos.trial import Trial, trial
from tests.stack import ROOT

pytestmark = pytest.mark.chaos

WIDTH = 8
REACH_S, TURN_S, FORGIVEN_S = 60.0, 1.5, 8.0

# Those of `make test`; `make full` sweeps all.
SOME = {"worker.sent", "worker.finishing", "router.frames", "router.given"}

# What leads to a step that ordinary traffic does not reach; a step that is not named here is given all of them in turn.
LEADS: dict[str, Fault] = {
    "worker.releasing": nemesis.drain_worker,
    "router.adopted": nemesis.kill_router,
    "router.revoked": nemesis.kill_worker,
}


def points() -> dict[str, list[str]]:
    """The argument of every call of crash.point in the services, by the role that makes it."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "services").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "crash.point":
                name = ast.literal_eval(node.args[0])
                found.setdefault(name.partition(".")[0], []).append(name)
    return found


async def until_forgiven(cluster: Cluster) -> None:
    """Until no request is under suspicion: three deaths in a row would rightly end one that was there each time.

    One that nobody listens to any more may stay so for longer, and does not matter.
    """
    redis = cast(Any, cluster.redis)
    deadline = time.monotonic() + FORGIVEN_S
    while time.monotonic() < deadline:
        keys = [key async for key in redis.scan_iter(match="rt:*:r:*", count=1000)]
        rows = [await redis.hmget(key, "state", "crashes", "suspects") for key in keys]
        active = [row for row in rows if row[0] in (b"queued", b"running")]
        if not any(int(crashes or 0) or suspects for _, crashes, suspects in active):
            return
        await asyncio.sleep(0.1)


async def sweep(running: Trial, role: str, names: list[str]) -> list[str]:
    """Has a process of `role` die at each of `names`; those that were not reached."""
    cluster, order = running.cluster, running.cluster.crash_order(role)
    rng = random.Random(role)
    missed = []
    for name in names:
        starts = sum(cluster.services[each].starts for each in cluster.names(role))
        order.write_text(name)
        deadline = time.monotonic() + REACH_S
        known = {**LEADS, "router.cancelled": running.load.cancel_storm}
        leads = itertools.cycle([known[name]] if name in known else known.values())
        turn_at = time.monotonic() + (0 if name in LEADS else TURN_S)
        while order.exists() and time.monotonic() < deadline:
            if time.monotonic() > turn_at:
                await next(leads)(cluster, rng)
                turn_at = time.monotonic() + TURN_S
            await asyncio.sleep(0.02)
        if order.exists():
            order.unlink()
            missed.append(name)
            continue
        while sum(cluster.services[each].starts for each in cluster.names(role)) == starts:
            await asyncio.sleep(0.02)
        await cluster.ready()
        if role == "worker":
            await until_forgiven(cluster)
        print(f"{name}: {REACH_S - deadline + time.monotonic():.1f} s")
    return missed


async def sweep_all(swept: dict[str, list[str]], seed: int, tmp_path: Path) -> None:
    async with trial(seed, WIDTH, Plan(crash_orders=True)) as running:
        try:
            missed = await asyncio.gather(*(sweep(running, role, names) for role, names in swept.items()))
        except AssertionError:
            running.keep_logs(tmp_path / "logs")
            raise
        verdict = await running.finish()
        if not verdict.sound:
            running.keep_logs(tmp_path / "logs")
        assert [*itertools.chain(*missed)] == []
        assert verdict.sound, "\n".join([f"seed {seed}, logs in {tmp_path}/logs", *verdict.findings[:20]])
        deaths = sum(life.code == -signal.SIGKILL for service in running.cluster.services.values() for life in service.exits)
        assert deaths >= sum(map(len, swept.values()))


@pytest.mark.timeout(240)
async def test_a_process_may_die_where_most_is_under_way(seed: int, tmp_path: Path) -> None:
    await sweep_all({role: [name for name in names if name in SOME] for role, names in points().items()}, seed, tmp_path)


@pytest.mark.full
@pytest.mark.timeout(900)
async def test_a_process_may_die_at_every_step(seed: int, tmp_path: Path) -> None:
    swept = points()
    assert set(swept) == {"router", "worker"}
    assert set(itertools.chain(*swept.values())) >= SOME | set(LEADS)
    await sweep_all(swept, seed, tmp_path)
