"""The default model instead of computable tokens: a worker and a router are killed under streams, whose tokens are those of
the undisturbed run.
"""

import asyncio
import time
from collections.abc import Callable

import pytest

from shared.sampling import SamplingParams
from tests.chaos.clients import Clients
from tests.chaos.cluster import Cluster, Plan, cluster
from tests.chaos.history import Ask, Seen
from tests.chaos.nemesis import kill

pytestmark = [pytest.mark.chaos, pytest.mark.full, pytest.mark.timeout(300)]

NUM_STREAMS, NUM_TOKENS = 8, 64
PLAN = Plan(num_routers=2, num_tokenizers=1, num_workers=2, worker={}, runner="model", ready_s=200.0)


def asks(first: int) -> list[Ask]:
    """The same requests each time, under other keys: greedy and drawn, one and two choices, with and without penalties."""
    kinds = [{"temperature": 0.0}, {"top_p": 0.9}, {"n": 2}, {"repetition_penalty": 1.2, "frequency_penalty": 0.3}]
    found = []
    for number in range(NUM_STREAMS):
        params = SamplingParams(seed=number, max_tokens=NUM_TOKENS, ignore_eos=True, **kinds[number % len(kinds)])
        found.append(Ask(first + number, "grpc", tuple(range(500 + 50 * number, 530 + 50 * number)), params))
    return found


def tokens(seen: Seen) -> dict[int, list[int]]:
    """What the client has in the end, by choice, over all its connections."""
    whole: dict[int, list[int]] = {choice: [] for choice in range(seen.ask.params.n)}
    for attempt in seen.attempts:
        for choice, ids in attempt.tokens.items():
            whole[choice] = whole[choice][: attempt.start[choice]] + ids
    return whole


async def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def busiest(running: Cluster) -> str:
    """The worker that runs most."""
    found = {name: await running.status(name) for name in running.names("worker")}
    return max(found, key=lambda name: status.num_running if (status := found[name]) is not None else -1)


async def test_a_worker_and_a_router_killed_under_streams() -> None:
    async with cluster(PLAN) as running:
        clients = Clients(running, seed=3)
        try:
            undisturbed = [tokens(await clients.ask(ask)) for ask in asks(0)]
            streams = asyncio.gather(*(clients.ask(ask) for ask in asks(100)))

            def all_have(num_tokens: int) -> bool:
                under_way = clients.seen[NUM_STREAMS:]
                return len(under_way) == NUM_STREAMS and all(len(tokens(seen)[0]) >= num_tokens for seen in under_way)

            await until(lambda: all_have(NUM_TOKENS // 8))
            await kill(running, await busiest(running))
            await until(lambda: all_have(NUM_TOKENS // 3))
            await kill(running, "router-0")
            disturbed = await streams
        finally:
            await clients.close()
    assert [seen.outcome for seen in disturbed] == ["done"] * NUM_STREAMS
    assert [tokens(seen) for seen in disturbed] == undisturbed
    assert all(len(ids) == NUM_TOKENS for whole in undisturbed for ids in whole.values())
    gaps = [end - start for seen in disturbed for start, end in seen.gaps]
    print(f"longest silence of a stream: {max(gaps, default=0.0):.2f} s")
