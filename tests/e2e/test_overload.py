"""A full queue refuses at once, and says when to come again from how fast it drains. Prints the figures it is about."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from tests import stack

SEATS, PLACES = 8, 40
NUM_REFUSALS = 500
# A refusal that took longer would not be one.
ACCEPTED_S = 1.0
# What DESIGN asks for is 10 ms at the 99th percentile; a machine that does other things is given more.
MOST_S = 0.1
QUEUE = "rt:{SmolLM2-135M-Instruct/0}:load"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Stack]:
    flags = ("--runner", "sim", "--max-num-seqs", str(SEATS), "--worker.sim-step-ms", "50")
    running = stack.start(tmp_path_factory.mktemp("overload"), *flags, "--router.max-queued-requests", str(PLACES))
    yield running
    assert running.stop() == 0, running.log.read_text()[-3000:]


def body_of(index: int, num_tokens: int) -> dict[str, Any]:
    return {"model": "default", "prompt": [index % 40_000 + 2] * 20, "max_tokens": num_tokens, "seed": index, "ignore_eos": True}


@pytest.mark.full
async def test_refusals_are_fast_and_tell_the_drain_rate(system: stack.Stack) -> None:
    """Enough clients to keep the queue full; each comes again as soon as it is done."""
    ended = asyncio.Event()
    times: list[float] = []
    waits: list[int] = []
    (socket,) = system.folder.glob("roadtrain-*/redis.sock")

    async def keep_asking(client: httpx.AsyncClient, number: int) -> None:
        turn = 0
        while not ended.is_set():
            turn += 1
            response = await client.post("/v1/completions", json=body_of(1000 * number + turn, 100))
            if response.status_code == 503:
                await asyncio.sleep(0.05)

    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(base_url=system.url, timeout=60, limits=limits) as crowd,
        httpx.AsyncClient(base_url=system.url, timeout=60) as client,
        Redis(unix_socket_path=str(socket)) as redis,
    ):
        asking = [asyncio.create_task(keep_asking(crowd, number)) for number in range(SEATS + PLACES + 16)]
        # The rate is measured over windows of 10 s.
        async with asyncio.timeout(40):
            while not float(await redis.hget(QUEUE, "rate") or 0):
                await asyncio.sleep(0.2)
        async with asyncio.timeout(60):
            while len(times) < NUM_REFUSALS:
                began_at = time.monotonic()
                # Now and then it finds a place that has just become free, and leaves it again.
                with contextlib.suppress(httpx.TimeoutException):
                    response = await client.post("/v1/completions", json=body_of(7, 100), timeout=ACCEPTED_S)
                    assert response.status_code == 503
                    times.append(time.monotonic() - began_at)
                    waits.append(int(response.headers["retry-after"]))
        rate = float(await redis.hget(QUEUE, "rate"))
        ended.set()
        await asyncio.gather(*asking)
    times.sort()
    p50, p99 = times[len(times) // 2], times[len(times) * 99 // 100]
    # Until a tenth of what waits has been claimed, at least a second.
    told_s = min(60.0, max(1.0, 0.1 * PLACES / rate))
    print(f"{len(times)} refusals: p50 {1000 * p50:.1f} ms, p99 {1000 * p99:.1f} ms")
    print(f"{rate:.2f} claims/s, Retry-After {sorted(set(waits))} s")
    assert p99 < MOST_S
    # The rate of the window before may have been another.
    assert all(wait > 1 and told_s / 2 <= wait <= 2 * told_s + 1 for wait in waits)
