"""The primary Redis dies under load, behind sentinels or in a cluster: streams do not notice, and no request is lost."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.worker.sim import SimSpec, expected_tokens
from shared.sampling import SamplingParams
from tests import redis_many, stack
from tests.e2e.sse_client import Seen, read
from tests.redis_many import Servers
from tests.router.plane.rig import text_of

SPEC = SimSpec(vocab_size=49152)
NUM_TOKENS = 500
FLAGS = ("--num-routers", "2", "--num-workers", "2", "--runner", "sim", "--worker.sim-step-ms", "20")
# How long clients go on asking; the failover itself takes 2 to 4 s.
LOAD_S = 12.0


@contextmanager
def running(folder: Path, servers: Servers, *flags: str) -> Iterator[stack.Stack]:
    system = stack.start(folder, *FLAGS, "--redis-url", servers.url, *flags)
    try:
        yield system
    finally:
        assert system.stop() == 0, system.log.read_text()[-3000:]


def body_of(index: int, num_tokens: int) -> dict[str, Any]:
    prompt = [(index * 977 + at * 31) % 40_000 + 2 for at in range(12 + index % 50)]
    return {"model": "default", "prompt": prompt, "max_tokens": num_tokens, "seed": index, "ignore_eos": True}


def wanted(body: dict[str, Any]) -> str:
    params = SamplingParams(seed=body["seed"], max_tokens=body["max_tokens"])
    return text_of(expected_tokens(SPEC, body["prompt"], params, 0)[0])


async def persist(client: httpx.AsyncClient, index: int) -> tuple[int, float]:
    """One short request, sent again under its key whenever it is refused; refusals, and how long the last one took."""
    refused = 0
    slowest = 0.0
    body = body_of(index, 5)
    while True:
        sent_at = time.monotonic()
        response = await client.post("/v1/completions", json=body, headers={"idempotency-key": f"load {index}"})
        if response.status_code == 200:
            assert response.json()["choices"][0]["text"] == wanted(body)
            assert response.json()["usage"]["prompt_tokens"] == len(body["prompt"])
            return refused, slowest
        slowest = max(slowest, time.monotonic() - sent_at)
        assert response.status_code == 503, response.text
        assert int(response.headers["retry-after"]) >= 1
        refused += 1
        await asyncio.sleep(0.2)


async def under_load(system: stack.Stack, servers: Servers, primary: int) -> list[float]:
    """Kills `primary` under 16 streams and short requests all the while; the longest gap of each stream."""
    wanted(body_of(0, 1))  # reads the vocabulary, for which streams would wait later
    streams = [Seen(body_of(index, NUM_TOKENS) | {"stream_options": {"include_usage": True}}) for index in range(16)]
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=system.url, timeout=60, limits=limits) as client:
        reading = [asyncio.create_task(read(client, seen)) for seen in streams]
        async with asyncio.timeout(30):
            while any(len(seen.times) < 20 for seen in streams):
                await asyncio.sleep(0.02)
        servers.kill(primary)
        end_at = time.monotonic() + LOAD_S
        asking: list[asyncio.Task[tuple[int, float]]] = []
        while time.monotonic() < end_at:
            asking.append(asyncio.create_task(persist(client, 1000 + len(asking))))
            await asyncio.sleep(0.1)
        answers = await asyncio.gather(*asking)
        await asyncio.gather(*reading)
    refused = sum(num for num, _ in answers)
    print(f"{len(answers)} short requests, refused {refused} times, the slowest refusal took {max(s for _, s in answers):.2f} s")
    for seen in streams:
        assert (seen.error, seen.done) == (None, True)
        assert seen.texts[0] == wanted(seen.body)
        assert seen.usage is not None
        assert seen.usage["completion_tokens"] == NUM_TOKENS
    assert max(s for _, s in answers) < 5.0
    return sorted(seen.longest_gap_s for seen in streams)


@pytest.mark.full
async def test_the_primary_dies_behind_sentinels(tmp_path: Path) -> None:
    with redis_many.sentinels() as servers, running(tmp_path, servers) as system:
        primary = redis_many.primary_of(servers)
        gaps = await under_load(system, servers, primary)
        print(f"longest gaps of streams: {gaps[-3:]}")
        assert gaps[-1] < 1.0
        assert redis_many.primary_of(servers) != primary


@pytest.mark.full
async def test_a_master_of_a_cluster_with_two_shards_dies(tmp_path: Path) -> None:
    with redis_many.cluster() as servers, running(tmp_path, servers, "--queue-shards", "2") as system:
        masters = [redis_many.master_of(servers, f"rt:{{SmolLM2-135M-Instruct/{shard}}}:") for shard in range(2)]
        assert masters[0] != masters[1]
        gaps = await under_load(system, servers, masters[0])
        print(f"longest gaps of streams: {gaps[-3:]}")
        assert gaps[-1] < 1.0
