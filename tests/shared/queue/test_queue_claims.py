"""Claims from several shards of which one is slow: the others' come at once, its own are not lost, and nobody gets too many."""

import asyncio
import signal

import pytest

from shared.errors import Unavailable
from shared.queue.claims import SLOW_S, Claims
from shared.queue.client import Queue
from shared.queue.scripts import Scripts
from shared.queue.shard import Shard
from shared.queue.types import Claim
from tests import redis_many
from tests.shared.queue.queue_requests import W0, request
from tests.shared.queue.test_queue_failover import connected


def claim(rid: str, *, solo: bool = False) -> Claim:
    return Claim(rid, 1, "r0", 1, b"", None, 5, 1, "alice", 10, 0, 0, solo)


class Slow:
    """Shards that answer when told; asked: (shard, k, solo) of every call."""

    def __init__(self, scripts: Scripts, num: int = 2):
        self.shards = [Shard(scripts, f"rt:{{m/{number}}}:", 1.0) for number in range(num)]
        self.answers: list[asyncio.Future[list[Claim]]] = []
        self.asked: list[tuple[int, int, bool]] = []
        self.claims = Claims(self.shards)

    async def ask(self, shard: Shard, k: int, solo: bool, left: int | None) -> list[Claim]:
        self.asked.append((self.shards.index(shard), k, solo))
        self.answers.append(asyncio.get_running_loop().create_future())
        return await self.answers[-1]

    async def take(self, k: int, *, solo: bool = False) -> list[Claim]:
        return await self.claims.take(self.ask, k, solo=solo, max_cost=None)


@pytest.fixture
async def slow(queue: Queue) -> Slow:
    return Slow(queue._scripts)


async def test_a_slow_shard_keeps_its_call_and_its_room(slow: Slow) -> None:
    assert await slow.take(5, solo=True) == []
    assert slow.asked == [(1, 5, True)]
    # All five may still come: there is room for three more, and not for one that must run alone.
    assert await slow.take(8, solo=True) == []
    assert slow.asked[1:] == [(0, 3, False)]
    slow.answers[0].set_result([claim("a"), claim("b")])
    slow.answers[1].set_result([claim("c")])
    await asyncio.sleep(0.01)
    assert {each.rid for each in await slow.take(0)} == {"a", "b", "c"}
    assert len(slow.asked) == 2


async def test_a_slow_shard_that_fails_is_no_failure_of_the_others(slow: Slow) -> None:
    assert await slow.take(1) == []
    slow.answers[0].set_exception(Unavailable("gone"))
    await asyncio.sleep(0.01)
    taking = asyncio.create_task(slow.take(1))
    while len(slow.answers) < 2:
        await asyncio.sleep(0)
    slow.answers[1].set_result([claim("a")])
    assert [each.rid for each in await taking] == ["a"]
    taking = asyncio.create_task(slow.take(1))
    for number in (2, 3):
        while len(slow.answers) <= number:
            await asyncio.sleep(0)
        slow.answers[number].set_exception(Unavailable("gone"))
    with pytest.raises(Unavailable):
        await taking


async def test_what_calls_still_bring_at_the_end(slow: Slow) -> None:
    await slow.take(2)
    resting = asyncio.create_task(slow.claims.rest())
    await asyncio.sleep(0.01)
    assert not resting.done()
    slow.answers[0].set_result([claim("a")])
    assert [each.rid for each in await resting] == ["a"]
    assert await slow.claims.rest() == []


async def test_a_master_that_hangs_delays_nobody_elses_claims() -> None:
    with redis_many.cluster(node_timeout_ms=15_000) as servers:
        async with connected(servers) as client:
            queue = Queue(client, model="m", num_shards=2)
            await queue.load()
            masters = [redis_many.master_of(servers, prefix) for prefix in queue.prefixes]
            assert masters[0] != masters[1], "choose a model name whose two shards stand apart"
            for number in range(8):
                await queue.put(request(rid=f"{number % 2:02x}{number:032x}"))
            frozen = servers.processes[masters[0]]
            frozen.send_signal(signal.SIGSTOP)
            try:
                began_at = asyncio.get_running_loop().time()
                found = [each.rid for _ in range(4) for each in await queue.claim(W0, 1)]
                took_s = asyncio.get_running_loop().time() - began_at
                print(f"four claims took {took_s:.2f} s, of them {len(found)} with a request")
                assert {rid[:2] for rid in found} == {"01"}
                # Every one that came upon the frozen shard would have waited for four seconds.
                assert took_s < 4 * SLOW_S + 2.0
            finally:
                frozen.send_signal(signal.SIGCONT)
            async with asyncio.timeout(30):
                while len(found) < 8:
                    found += [each.rid for each in await queue.claim(W0, 8)]
            assert len(set(found)) == 8
