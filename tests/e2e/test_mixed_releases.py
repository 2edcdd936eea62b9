"""Workers of this release and of the next one side by side: one wire, but no answer made by both."""

import asyncio
import signal

import httpx

from services.worker.sim import SimSpec, expected_tokens
from shared.sampling import SamplingParams
from tests.chaos.cluster import LAUNCHER, Cluster, Plan, cluster
from tests.e2e.sse_client import Seen, read
from tests.router.plane.rig import text_of

NEXT = "tests.e2e.next_release"
SPEC = SimSpec(vocab_size=49152)
NUM_TOKENS = 300
# Few seats, so that each worker gets some.
WORKER = {"sim_step_ms": 20.0, "sim_num_blocks": 2048, "drain_grace_s": 0.3, "max_num_seqs": 5}


def stream_of(index: int) -> Seen:
    prompt = [(index * 977 + at * 31) % 40_000 + 2 for at in range(12 + index)]
    return Seen({"model": "default", "prompt": prompt, "max_tokens": NUM_TOKENS, "seed": index, "ignore_eos": True})


def wanted(seen: Seen) -> str:
    params = SamplingParams(seed=seen.body["seed"], max_tokens=NUM_TOKENS)
    return text_of(expected_tokens(SPEC, seen.body["prompt"], params, 0)[0])


def check(seen: Seen) -> None:
    assert (seen.error, seen.done) == (None, True)
    assert seen.texts[0] == wanted(seen)


async def running_on(system: Cluster, worker: str) -> int:
    status = await system.status(worker)
    return status.num_running if status is not None else 0


async def begin(client: httpx.AsyncClient, streams: list[Seen]) -> list[asyncio.Task[None]]:
    reading = [asyncio.create_task(read(client, seen)) for seen in streams]
    async with asyncio.timeout(30):
        while any(len(seen.times) < 10 for seen in streams):
            await asyncio.sleep(0.02)
    return reading


async def test_a_request_stays_with_the_release_that_began_it() -> None:
    """Old, next and old: the first old one goes for good, and what it made goes on at the other; then that one goes, too."""
    plan = Plan(
        num_routers=1, num_tokenizers=1, worker=WORKER, modules={"worker-0": LAUNCHER, "worker-1": NEXT, "worker-2": LAUNCHER}
    )
    text_of([1])
    async with cluster(plan) as system, httpx.AsyncClient(base_url=system.url("router-0"), timeout=60) as client:
        streams = [stream_of(index) for index in range(12)]
        reading = await begin(client, streams)
        told = [status.fingerprint if (status := await system.status(f"worker-{n}")) else "" for n in range(3)]
        assert told == ["sim-1", "sim-2", "sim-1"]
        shares = [await running_on(system, worker) for worker in ("worker-0", "worker-1", "worker-2")]
        assert all(shares), f"one of them got nothing: {shares}"
        await system.services["worker-0"].stop()
        await asyncio.gather(*reading)
        for seen in streams:
            check(seen)

        streams = [stream_of(index) for index in range(20, 29)]
        reading = await begin(client, streams)
        theirs = await running_on(system, "worker-1")
        service = system.services["worker-2"]
        assert service.keeper is not None
        service.keeper.cancel()
        # It drains, as in an upgrade: what it hands back no worker that is left may go on with.
        service.signal(signal.SIGTERM)
        await asyncio.gather(*reading)
        ended = [seen for seen in streams if seen.error is not None]
        assert len(ended) == len(streams) - theirs
        for seen in ended:
            assert seen.error is not None
            assert (seen.error["code"], seen.done) == ("numerics_changed", False)
            assert wanted(seen).startswith(seen.texts[0])
        for seen in streams:
            if seen.error is None:
                check(seen)
        # What begins now runs where it can.
        last = stream_of(40)
        await read(client, last)
        check(last)
