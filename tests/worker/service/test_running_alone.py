"""A request that must run alone, on workers that are never empty by themselves: it is started, and nothing else suffers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.worker import clearing
from services.worker.sim import SimSpec
from shared.queue.types import Known
from shared.tasks import end_tasks
from tests.worker.service.conftest import Plane, answer, params
from tests.worker.service.router_double import Owed, RouterDouble, until

SLOW = SimSpec(num_blocks=512, max_model_len=2048, vocab_size=1000, step_ms=5.0)
PROMPT = list(range(40))
NUM_TOKENS = 150


@asynccontextmanager
async def traffic(plane: Plane, router: RouterDouble, width: int) -> AsyncIterator[list[Owed]]:
    """`width` requests under way, always: each that ends is followed by another. Yields those that ended."""
    given: list[Owed] = []

    async def slot(number: int) -> None:
        # Started one after the other, so that they never all end together.
        await asyncio.sleep(0.2 * number)
        while True:
            owed = await plane.put(router, params(max_tokens=NUM_TOKENS), PROMPT)
            await until(lambda each=owed: each.whole, owed, timeout_s=60)
            given.append(owed)

    slots = [asyncio.create_task(slot(number)) for number in range(width)]
    try:
        yield given
    finally:
        await end_tasks(slots)


async def put_suspect(plane: Plane, router: RouterDouble, max_tokens: int = NUM_TOKENS) -> Owed:
    """A request that two processes have died of."""
    return await plane.put(router, params(max_tokens=max_tokens), PROMPT, known=Known(crashes=2))


async def test_it_is_started_although_the_worker_is_never_empty(plane: Plane) -> None:
    router = await plane.router()
    worker = await plane.worker(spec=SLOW)
    async with traffic(plane, router, 4) as given:
        await until(lambda: len(given) > 0, timeout_s=60)
        suspects = [await put_suspect(plane, router) for _ in range(4)]
        for suspect in suspects:
            await until(lambda each=suspect: each.whole, suspect, timeout_s=60)
        num_given = len(given)
        await until(lambda: len(given) > num_given, timeout_s=60)
    for each in (*suspects, *given):
        assert each.choices[0] == answer(PROMPT, params(max_tokens=NUM_TOKENS))
    assert not worker.failed


async def test_what_runs_for_long_is_handed_on_for_it(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clearing, "CLEAR_S", 0.2)
    router = await plane.router()
    await plane.worker(spec=SLOW)
    long = await plane.put(router, params(max_tokens=1500), PROMPT)
    await until(lambda: len(long.choices[0]) > 3, long)
    suspects = [await put_suspect(plane, router, 1200) for _ in range(2)]
    for suspect in suspects:
        await until(lambda each=suspect: bool(each.choices[0]), suspect, timeout_s=60)
    # All three are under way, and none of them waited for the end of another.
    assert not any(each.whole for each in (long, *suspects))
    for each, num_tokens in ((long, 1500), (suspects[0], 1200), (suspects[1], 1200)):
        await until(lambda each=each: each.whole, each, timeout_s=60)
        assert each.choices[0] == answer(PROMPT, params(max_tokens=num_tokens))
    assert len(long.epochs) > 1


async def test_one_whose_reader_is_slow_keeps_no_worker_idle(plane: Plane) -> None:
    """Paused it computes nothing that could go wrong. When its reader wants more and others run, it goes to the queue again."""
    router = await plane.router()
    worker = await plane.worker(spec=SLOW)
    known = Known(crashes=2, progress=500)
    suspect = await plane.put(router, params(max_tokens=600), PROMPT, known=known)
    await until(lambda: len(suspect.choices[0]) > 3, suspect)
    other = await plane.put(router, params(max_tokens=400), PROMPT)
    await asyncio.sleep(1.0)
    assert not other.epochs, "beside a suspect"
    router.say(suspect, "pause")
    await until(lambda: len(other.choices[0]) > 3, other)
    assert worker.engine.stats().paused == 1
    router.say(suspect, "resume")
    # Alone again, once the other has ended or was handed back.
    await until(lambda: len(suspect.epochs) > 1, suspect, timeout_s=60)
    for owed, num_tokens in ((other, 400), (suspect, 600)):
        await until(lambda each=owed: each.whole, owed, timeout_s=60)
        assert owed.choices[0] == answer(PROMPT, params(max_tokens=num_tokens))
    assert not worker.failed
