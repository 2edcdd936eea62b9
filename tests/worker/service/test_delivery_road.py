"""Claim, Begin, frames, acks, Finished, finish: the road of tokens on real sockets, a real Redis and the sim runner."""

import asyncio

import pytest

from services.worker.sim import SimSpec
from shared.pb import types_pb2, worker_pb2, worker_pb2_grpc
from shared.rpc import connect as connect_rpc
from tests.worker.service.conftest import SPEC, Plane, answer, params
from tests.worker.service.router_double import Owed, until

pytestmark = pytest.mark.optimized

SLOW = SimSpec(num_blocks=512, max_model_len=2048, vocab_size=1000, step_ms=5.0)
PROMPT = list(range(40))


async def ended(plane: Plane, owed: Owed) -> str:
    async with asyncio.timeout(10):
        while (record := await plane.record(owed)).state in ("queued", "running"):
            await asyncio.sleep(0.005)
    return record.state


async def test_a_request_is_claimed_delivered_and_finished(plane: Plane) -> None:
    router = await plane.router()
    worker = await plane.worker()
    sampling = params(num_logprobs=2, num_prompt_logprobs=0, n=2)
    owed = await plane.put(router, sampling, PROMPT)
    assert await ended(plane, owed) == "done"
    assert owed.choices == [answer(PROMPT, sampling, 0), answer(PROMPT, sampling, 1)]
    assert owed.logprobs == owed.choices
    assert [len(row.token_ids) for row in owed.prompt_logprobs] == [len(PROMPT) - 1]
    assert owed.finishes[1].reason == types_pb2.FINISH_REASON_LENGTH
    record = await plane.record(owed)
    assert types_pb2.Usage.FromString(record.usage) == owed.usage()
    await until(lambda: not worker.consumer.held)
    assert worker.engine.stats().running == 0


async def test_one_message_per_step_carries_all_requests(plane: Plane) -> None:
    router = await plane.router()
    await plane.worker(spec=SLOW)
    many = [await plane.put(router, params(seed=seed, max_tokens=60), PROMPT) for seed in range(16)]
    for owed in many:
        assert await ended(plane, owed) == "done"
    num_messages = sum(connection.num_messages for connection in router.connections)
    num_rows = sum(owed.num_frames for owed in many)
    assert [owed.choices[0] for owed in many] == [answer(PROMPT, params(seed=seed, max_tokens=60)) for seed in range(16)]
    assert num_messages < num_rows / 4


async def test_a_broken_stream_is_dialled_again_and_replayed_without_recompute(plane: Plane) -> None:
    router = await plane.router()
    worker = await plane.worker(spec=SLOW)
    owed = await plane.put(router, params(max_tokens=120), PROMPT)
    for num_tokens in (20, 50):
        await until(lambda least=num_tokens: len(owed.choices[0]) > least, owed)
        await router.break_streams()
    assert await ended(plane, owed) == "done"
    assert owed.choices[0] == answer(PROMPT, params(max_tokens=120))
    assert len(owed.begins) == 3
    assert len(set(owed.epochs)) == 1
    assert worker.engine.stats().computed_tokens == len(PROMPT) + 119


async def test_ids_accepted_from_another_worker_win(plane: Plane) -> None:
    router = await plane.router()
    sampling = params(max_tokens=30)
    expected = answer(PROMPT, sampling)
    owed = await plane.put(router, sampling, PROMPT, fingerprint="sim-1")
    owed.choices[0] = expected[:10]
    differing = await plane.put(router, sampling, PROMPT, silent=True)
    worker = await plane.worker()
    assert await ended(plane, owed) == "done"
    assert owed.choices[0] == expected
    await until(lambda: differing.epochs and worker.engine.stats().running == 0)
    # It has its own whole log; the router says that another made other tokens of it.
    differing.choices[0] = [7] * 5
    differing.silent = False
    await router.break_streams()
    assert await ended(plane, differing) == "done"
    assert differing.choices[0] == [7] * 5 + expected[5:]


async def test_the_window_bounds_what_is_in_flight(plane: Plane) -> None:
    router = await plane.router()
    spec = SimSpec(num_blocks=1024, max_model_len=8192, vocab_size=1000)
    worker = await plane.worker(spec=spec)
    owed = await plane.put(router, params(max_tokens=5000), PROMPT, acks=False)
    await until(lambda: worker.engine.stats().steps and worker.engine.stats().running == 0)
    await until(lambda: len(owed.choices[0]) == 4096, owed)
    assert not owed.finishes
    router.say(owed, "acks", choice=0, num_tokens=4096)
    assert await ended(plane, owed) == "done"
    assert owed.choices[0] == answer(PROMPT, params(max_tokens=5000), spec=spec)


async def test_a_gap_is_sent_again(plane: Plane) -> None:
    router = await plane.router()
    await plane.worker(spec=SLOW)
    owed = await plane.put(router, params(), PROMPT)
    await until(lambda: len(owed.choices[0]) > 10, owed)
    del owed.choices[0][5:]
    assert await ended(plane, owed) == "done"
    assert owed.choices[0] == answer(PROMPT, params())


async def test_a_stop_string_ends_one_choice(plane: Plane) -> None:
    router = await plane.router()
    worker = await plane.worker(spec=SLOW)
    owed = await plane.put(router, params(max_tokens=400, n=2), PROMPT)
    await until(lambda: len(owed.choices[0]) > 10, owed)
    for choice in (0, 1):
        del owed.choices[choice][8:]
        owed.stopped.add(choice)
        router.say(owed, "stop", choice=choice, num_tokens=8)
    await until(lambda: worker.engine.stats().running == 0)
    router.say(owed, "finished", usage=owed.usage())
    assert await ended(plane, owed) == "done"
    assert worker.engine.stats().steps < 100


async def test_pause_holds_one_sequence_alone(plane: Plane) -> None:
    router = await plane.router()
    worker = await plane.worker(spec=SLOW)
    slow = await plane.put(router, params(max_tokens=100), PROMPT)
    await until(lambda: len(slow.choices[0]) > 5, slow)
    router.say(slow, "pause")
    await until(lambda: worker.engine.stats().paused == 1)
    other = await plane.put(router, params(seed=2), PROMPT)
    assert await ended(plane, other) == "done"
    assert len(slow.choices[0]) < 100
    router.say(slow, "resume")
    assert await ended(plane, slow) == "done"
    assert slow.choices[0] == answer(PROMPT, params(max_tokens=100))


async def test_status_and_drain_by_grpc(plane: Plane) -> None:
    router = await plane.router()
    worker = await plane.worker(spec=SLOW)
    owed = await plane.put(router, params(max_tokens=60), PROMPT)
    await until(lambda: len(owed.choices[0]) > 5, owed)
    async with connect_rpc(f"unix:{plane.folder}/w0.admin") as channel:
        stub = worker_pb2_grpc.WorkerStub(channel)
        status = await stub.Status(worker_pb2.StatusRequest())
        assert (status.worker_id, status.num_running, status.fingerprint) == ("w0", 1, "sim-1")
        assert status.num_blocks == SPEC.num_blocks
        assert (await stub.Drain(worker_pb2.DrainRequest(grace_s=20))).num_running == 1
        later = await plane.put(router, params(), PROMPT)
        async with asyncio.timeout(10):
            await worker.ended.wait()
    assert (await plane.record(owed)).state == "done"
    assert (await plane.record(later)).state == "queued"
