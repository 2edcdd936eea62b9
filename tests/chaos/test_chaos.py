"""The chaos that `make test` runs: every fault once, then faults at random; and broken fencing, which must be caught.

To repeat a run: `make chaos ARGS="--seed N"`, or `python -m tests.chaos.soak --seed N`.
The oracles are in docs/reliability.md.
"""

import asyncio
import time
from asyncio import Future
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shared.sampling import SamplingParams
from tests.chaos.checkers import Judge, Verdict
from tests.chaos.clients import Clients
from tests.chaos.cluster import LAUNCHER, Cluster, Plan, cluster
from tests.chaos.history import Ask, Seen
from tests.chaos.load import spec_of
from tests.chaos.trial import trial

pytestmark = pytest.mark.chaos

WIDTH, SIDE_BY_SIDE = 16, 5
RANDOM_S, EVERY_S = 16.0, 2.0
NUM_STREAMS, NUM_TOKENS = 8, 300
NUM_TRIES = 3


@pytest.mark.timeout(240)
async def test_nothing_is_lost_doubled_or_left_behind(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    async with trial(seed, WIDTH) as running:
        await running.nemesis.each_once(SIDE_BY_SIDE)
        await running.nemesis.at_random(RANDOM_S, EVERY_S)
        verdict = await running.finish()
        if not verdict.sound:
            running.keep_logs(tmp_path / "logs")
        schedule = [f"{each.at - running.began_at:.1f} {each.kind}: {each.detail}" for each in running.nemesis.struck]
        assert verdict.sound, "\n".join([f"seed {seed}, logs in {tmp_path}/logs", *verdict.findings[:20], *schedule])
    assert verdict.outcomes["done"] > 5 * WIDTH


@asynccontextmanager
async def split_brain(router: str = LAUNCHER) -> AsyncIterator[tuple[Cluster, Clients, Future[list[Seen]]]]:
    """A worker that was cut from Redis and its router until another ran its requests, and now reaches the router alone.

    Yields the cluster, its clients and their open streams.
    """
    async with cluster(Plan(num_routers=1, num_tokenizers=1, num_workers=2, modules={"router-0": router})) as running:
        clients = Clients(running, seed=1)
        params = SamplingParams(seed=7, max_tokens=NUM_TOKENS, ignore_eos=True)
        asks = [Ask(number, "grpc", (number + 1,) * 20, params) for number in range(NUM_STREAMS)]
        streams = asyncio.gather(*(clients.ask(ask) for ask in asks))
        try:
            await until(lambda: len([seen for seen in clients.seen if seen.attempts and seen.attempts[0].tokens]) == NUM_STREAMS)
            cable = running.deliver_proxies["worker-0", "router-0"]
            running.redis_proxies["worker-0"].hold()
            cable.hold()
            cable.reset()
            await until_running(running, "worker-1", NUM_STREAMS)
            cable.heal()
            yield running, clients, streams
        finally:
            streams.cancel()
            await asyncio.gather(streams, return_exceptions=True)
            await clients.close()


async def until_running(running: Cluster, worker: str, num: int) -> None:
    deadline = time.monotonic() + 60
    while (status := await running.status(worker)) is None or status.num_running != num:
        assert time.monotonic() < deadline, f"{worker} does not run {num}: {status}"
        await asyncio.sleep(0.02)


async def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_a_split_brain_is_fenced() -> None:
    async with split_brain() as (running, clients, streams):
        # Redis cannot have told it: only the router's Fenced frees its blocks now.
        await until_running(running, "worker-0", 0)
        await streams
        verdict = judge(running, clients)
    assert verdict.sound, verdict.findings
    assert verdict.outcomes == {"done": NUM_STREAMS}


async def test_broken_fencing_is_caught() -> None:
    """The same with a router that listens to whoever speaks: a checker that finds nothing here would find nothing anywhere."""
    # Whether both workers speak in time is a race on a busy machine: what has to be found must come first.
    for _ in range(NUM_TRIES):
        async with split_brain("tests.chaos.broken_router") as (running, clients, streams):
            await until(lambda: streams.done() or judge(running, clients).duplicated > 0)
            verdict = judge(running, clients)
        if verdict.duplicated > 0:
            break
    assert verdict.duplicated > 0, verdict
    assert any(finding.startswith("N1") for finding in verdict.findings)


def judge(running: Cluster, clients: Clients) -> Verdict:
    return Judge(spec_of(running.plan)).judge(clients.seen)
