"""Every process is restarted, one after the other, under load: SIGTERM, as an upgrade would. No request fails."""

import asyncio
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.chaos.cluster import Cluster
from tests.chaos.trial import trial

SEED, WIDTH = 20261126, 12
RESTARTED_S = 60.0


async def restart(system: Cluster, name: str) -> float:
    """SIGTERM, and back again; how long it was until all would take work."""
    service = system.services[name]
    before, began_at = service.starts, time.monotonic()
    assert service.signal(signal.SIGTERM)
    while service.starts == before:
        assert time.monotonic() - began_at < RESTARTED_S, f"{name} does not end"
        await asyncio.sleep(0.05)
    await system.ready()
    return time.monotonic() - began_at


@pytest.mark.full
@pytest.mark.timeout(300)
async def test_each_process_in_turn(tmp_path: Path) -> None:
    """Redis, too, which keeps an append-only file; the doors then say 503 with a time, which clients obey."""
    print(f"seed {SEED}")
    async with trial(SEED, WIDTH) as running:
        for name in list(running.cluster.services):
            print(f"{name}: {await restart(running.cluster, name):.1f} s")
            await asyncio.sleep(1.0)
        exits = {name: [life.code for life in service.exits] for name, service in running.cluster.services.items()}
        verdict = await running.finish()
        if not verdict.sound:
            shutil.copytree(running.cluster.folder, tmp_path / "logs", ignore=shutil.ignore_patterns("*.sock", "secret"))
    print(f"{verdict.asked} requests, {verdict.outcomes}, {verdict.came_back} came back, refused at first: {verdict.refusals}")
    assert verdict.sound, "\n".join([f"logs in {tmp_path}/logs", *verdict.findings[:20]])
    assert verdict.outcomes["done"] > 5 * WIDTH
    assert all(codes == [0] for codes in exits.values()), exits
