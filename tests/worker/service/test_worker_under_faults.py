"""What a worker does when routers, Redis, requests or its own engine go wrong. Protocol §5."""

import asyncio
import dataclasses
import threading

import pytest

from services.worker.engine.step import Step, StepResult
from services.worker.sim import SimRunner, SimSpec
from services.worker.watchdog import Watchdog
from shared.pb import types_pb2
from shared.queue.client import Queue
from shared.queue.connection import connect
from shared.queue.registry import Registry, RouterFacts
from shared.queue.types import Owner
from tests.redis_server import launch
from tests.worker.service.conftest import Plane, answer, params
from tests.worker.service.router_double import Owed, RouterDouble, until

SLOW = SimSpec(num_blocks=512, max_model_len=2048, vocab_size=1000, step_ms=5.0)
PROMPT = list(range(40))


async def state(plane: Plane, owed: Owed, *states: str) -> str:
    async with asyncio.timeout(10):
        while (record := await plane.record(owed)).state not in states:
            await asyncio.sleep(0.005)
    return f"{record.state} {record.reason}"


async def test_a_fenced_worker_drops_the_request_and_releases_it(plane: Plane) -> None:
    router = await plane.router()
    worker = await plane.worker(spec=SLOW)
    owed = await plane.put(router, params(max_tokens=400), PROMPT)
    await until(lambda: len(owed.choices[0]) > 3, owed)
    floor = owed.epochs[-1] + 10_000_000_000
    router.say(owed, "fenced", epoch=floor)
    await until(lambda: len(owed.epochs) == 2, owed)
    assert owed.epochs[-1] > floor
    assert len(worker.consumer.held) == 1
    await until(lambda: owed.whole, owed)
    assert owed.choices[0] == answer(PROMPT, params(max_tokens=400))


async def test_a_request_cancelled_by_its_router_frees_its_blocks(plane: Plane) -> None:
    router = await plane.router()
    worker = await plane.worker(spec=SLOW)
    owed = await plane.put(router, params(max_tokens=1500), PROMPT)
    await until(lambda: len(owed.choices[0]) > 3, owed)
    router.say(owed, "cancel")
    assert await state(plane, owed, "cancelled") == "cancelled disconnect"
    await until(lambda: worker.engine.stats().free_blocks == SLOW.num_blocks)
    assert (await plane.record(owed)).revivable


async def test_an_orphan_is_adopted_by_another_router(plane: Plane) -> None:
    old, new = await plane.router("r0"), await plane.router("r1")
    worker = await plane.worker(spec=SLOW)
    owed = await plane.put(old, params(max_tokens=250), PROMPT)
    await until(lambda: len(owed.choices[0]) > 3, owed)
    del old.held[owed.rid]
    old.say(owed, "unknown")
    adopted = new.owe(owed.rid)
    await plane.queue.adopt(owed.rid, tenant="tenant", router_id="r1")
    assert await state(plane, owed, "done") == "done "
    assert adopted.choices[0] == answer(PROMPT, params(max_tokens=250))
    assert adopted.epochs == owed.epochs
    assert worker.engine.stats().computed_tokens == len(PROMPT) + 249


async def test_a_client_that_moved_before_the_end_gets_the_whole_log(plane: Plane) -> None:
    old, new = await plane.router("r0"), await plane.router("r1")
    await plane.worker(spec=SLOW)
    owed = await plane.put(old, params(), PROMPT, finishes_itself=False)
    await until(lambda: owed.whole, owed)
    adopted = new.owe(owed.rid)
    await plane.queue.adopt(owed.rid, tenant="tenant", router_id="r1")
    old.say(owed, "finished", usage=owed.usage())
    assert await state(plane, owed, "done") == "done "
    assert adopted.choices[0] == answer(PROMPT, params())


async def test_an_orphan_nobody_adopts_ends_revivable(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    router = await plane.router()
    worker = await plane.worker(spec=SLOW)
    monkeypatch.setattr(worker.consumer, "_grace_s", 0.5)
    owed = await plane.put(router, params(max_tokens=100), PROMPT)
    await until(lambda: len(owed.choices[0]) > 3, owed)
    await router.stop()
    assert await state(plane, owed, "cancelled") == "cancelled orphan"
    assert (await plane.record(owed)).revivable
    await until(lambda: not worker.consumer.held)


async def test_a_router_that_comes_back_at_another_address_is_found(plane: Plane) -> None:
    router = await plane.router()
    await plane.worker(spec=SLOW)
    owed = await plane.put(router, params(max_tokens=100), PROMPT)
    await until(lambda: len(owed.choices[0]) > 3, owed)
    await router.stop()
    (plane.folder / "moved").mkdir()
    again = RouterDouble(plane.folder / "moved", "r0")
    again.held = router.held
    await again.start()
    plane.stack.push_async_callback(again.stop)
    await plane.registry.announce_router(RouterFacts("r0", "boot2", again.address))
    assert await state(plane, owed, "done") == "done "
    assert owed.choices[0] == answer(PROMPT, params(max_tokens=100))


async def test_other_numerics_hand_the_request_on(plane: Plane) -> None:
    router = await plane.router()
    owed = await plane.put(router, params(), PROMPT, fingerprint="other")
    owed.choices[0] = [1, 2, 3]
    await plane.worker()
    await until(lambda: len(owed.epochs) >= 2, owed)
    assert owed.choices[0] == [1, 2, 3]


def damage(payload: types_pb2.Payload) -> None:
    payload.sampling.temperature = 9.0


async def test_a_forged_payload_is_refused_and_a_wrong_one_answered(plane: Plane) -> None:
    router = await plane.router()
    worker = await plane.worker()
    forged = await plane.put(router, params(), PROMPT, keys=(b"x" * 64,))
    assert await state(plane, forged, "dead") == "dead bad_payload"
    assert worker.consumer.num_bad_payloads == 1
    wrong = await plane.put(router, params(), PROMPT, damage)
    long = await plane.put(router, params(), [1] * 2048)
    assert await state(plane, wrong, "done") == "done "
    assert (wrong.finishes[0].error.param, wrong.finishes[0].error.type) == ("temperature", "invalid_request_error")
    assert await state(plane, long, "done") == "done "
    assert long.finishes[0].error.code == "context_length_exceeded"
    assert not forged.epochs


async def test_drain_hands_back_what_does_not_end_in_time(plane: Plane) -> None:
    router = await plane.router()
    first = await plane.worker("w0", spec=SLOW)
    owed = await plane.put(router, params(max_tokens=600), PROMPT)
    await until(lambda: len(owed.choices[0]) > 3, owed)
    first.begin_drain(0.05)
    second = await plane.worker("w1", spec=dataclasses.replace(SLOW, step_ms=1.0))
    await first.ended.wait()
    assert await state(plane, owed, "done") == "done "
    assert owed.choices[0] == answer(PROMPT, params(max_tokens=600))
    assert len(owed.epochs) == 2
    assert second.engine.stats().computed_tokens < len(PROMPT) + 600 + 20


async def test_redis_away_stops_no_stream(plane: Plane) -> None:
    own = launch(plane.folder / "own.sock")
    try:
        other = dataclasses.replace(plane, url=own.url)
        redis = connect(own.url)
        other.queue, other.registry = Queue(redis, model="test"), Registry(redis)
        await other.queue.load()
        router = await other.router()
        worker = await other.worker(spec=SLOW)
        owed = await other.put(router, params(max_tokens=120), PROMPT)
        await until(lambda: len(owed.choices[0]) > 3, owed)
        own.stop()
        await router.break_streams()
        await until(lambda: owed.whole, owed)
        assert owed.choices[0] == answer(PROMPT, params(max_tokens=120))
        assert worker.consumer.held
        own = launch(plane.folder / "own.sock")
        await other.queue.load()
        await until(lambda: not worker.consumer.held)
        assert (await other.record(owed)).state == "done"
        await redis.aclose()
    finally:
        own.stop()


async def test_an_engine_failure_ends_the_worker(plane: Plane) -> None:
    router = await plane.router()
    worker = await plane.worker()

    def fail(step: Step) -> StepResult:
        raise RuntimeError("the device is gone")

    runner = worker.engine._runner
    assert isinstance(runner, SimRunner)
    runner.run = fail  # type: ignore[method-assign]
    owed = await plane.put(router, params(), PROMPT)
    async with asyncio.timeout(10):
        await worker.ended.wait()
    assert worker.failed
    assert (await plane.record(owed)).owner == str(worker.owner)


async def test_a_suspect_runs_alone(plane: Plane) -> None:
    router = await plane.router()
    suspect = await plane.put(router, params(max_tokens=200), PROMPT)
    for boot in ("b1", "b2"):
        owner = Owner("dead", boot)
        claims = await plane.queue.claim(owner, 1, solo=True)
        await plane.queue.revoke("r0", suspect.rid, owner, claims[0].epoch, 100)
        await plane.queue.reap()
        await plane.queue.exited(owner)
        await plane.queue.reap()
    worker = await plane.worker(spec=SLOW)
    await until(lambda: len(suspect.choices[0]) > 3, suspect)
    other = await plane.put(router, params(), PROMPT)
    await until(lambda: bool(other.epochs), other)
    assert len(suspect.choices[0]) > 100, "the other began before the suspect was past the token it died at"
    await until(lambda: suspect.whole, suspect)
    assert await state(plane, other, "done") == "done "
    assert not worker.failed


class Stuck:
    """An engine that stands still once told to."""

    def __init__(self) -> None:
        self.stalled = 0.0

    def stalled_s(self) -> float:
        return self.stalled


def test_the_watchdog_tells_a_stuck_engine_from_an_idle_one() -> None:
    engine, told = Stuck(), threading.Event()
    watchdog = Watchdog(engine, lambda: 0.05, lambda stalled_s: told.set(), interval_s=0.01)
    watchdog.start()
    assert not told.wait(0.15)
    engine.stalled = 9.0
    assert told.wait(5.0)
    watchdog.stop()
