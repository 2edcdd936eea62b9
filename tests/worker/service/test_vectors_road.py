"""A vector on its road: claimed, computed, delivered with its end, sent again after a break, finished. The sim, a real Redis."""

import asyncio
from dataclasses import replace

import pytest

from services.worker.engine.engine import Delta, Finish, Work
from services.worker.engine.step import Pooling
from services.worker.outbound import MESSAGE_TOKENS, Message, Outbound
from services.worker.sim import VECTOR_SIZE, expected_vector
from shared.pb import types_pb2
from shared.sampling import SamplingParams
from tests.worker.service.conftest import SPEC, Plane, params
from tests.worker.service.router_double import Owed, until
from tests.worker.service.test_delivery_road import ended

pytestmark = pytest.mark.optimized

PROMPT = list(range(40))
SLOW = replace(SPEC, prefill_tokens_per_s=100.0)


def wanted(payload: types_pb2.Payload, pooling: int = types_pb2.POOLING_MEAN, dimensions: int = VECTOR_SIZE) -> None:
    payload.kind = types_pb2.KIND_EMBED
    payload.ClearField("sampling")
    payload.vector.CopyFrom(types_pb2.Vector(pooling=pooling, dimensions=dimensions))  # type: ignore[arg-type]


def check(owed: Owed, prompt: list[int] = PROMPT) -> None:
    assert owed.choices == [[]]
    finish = owed.finishes[0]
    assert (finish.reason, finish.num_tokens) == (types_pb2.FINISH_REASON_STOP, 0)
    assert finish.vector == expected_vector(prompt, Pooling("mean", VECTOR_SIZE))


async def test_it_is_claimed_delivered_and_finished(plane: Plane) -> None:
    router = await plane.router()
    worker = await plane.worker()
    owed = await plane.put(router, params(), PROMPT, wanted)
    assert await ended(plane, owed) == "done"
    check(owed)
    await until(lambda: not worker.consumer.held)
    stats = worker.engine.stats()
    assert (stats.computed_tokens, stats.running, stats.free_blocks) == (len(PROMPT), 0, stats.num_blocks)


async def test_a_broken_stream_brings_it_again_and_nothing_is_computed_again(plane: Plane) -> None:
    router = await plane.router()
    worker = await plane.worker()
    owed = await plane.put(router, params(), PROMPT, wanted, finishes_itself=False)
    await until(lambda: bool(owed.finishes), owed)
    # What it said is forgotten, as by a router that starts again: the log of the worker has it all.
    owed.finishes.clear()
    await router.break_streams()
    await until(lambda: bool(owed.finishes), owed)
    check(owed)
    assert worker.engine.stats().computed_tokens == len(PROMPT)


async def test_a_router_that_has_it_is_not_sent_it_again(plane: Plane) -> None:
    router = await plane.router()
    await plane.worker()
    owed = await plane.put(router, params(), PROMPT, wanted, finishes_itself=False)
    await until(lambda: bool(owed.finishes), owed)
    await router.break_streams()
    async with asyncio.timeout(10):
        while len(owed.begins) < 2:
            await asyncio.sleep(0.01)
    check(owed)
    assert not router.faults


@pytest.mark.parametrize(
    "change",
    [
        lambda payload: wanted(payload, types_pb2.POOLING_UNSPECIFIED),
        lambda payload: wanted(payload, 17),
        lambda payload: wanted(payload, dimensions=0),
        lambda payload: wanted(payload, dimensions=VECTOR_SIZE + 1),
        lambda payload: setattr(payload, "kind", types_pb2.KIND_SCORE),
        lambda payload: setattr(payload, "kind", types_pb2.KIND_UNSPECIFIED),
    ],
)
async def test_what_a_payload_may_not_ask_is_the_request_s_fault(plane: Plane, change: object) -> None:
    router = await plane.router()
    worker = await plane.worker()
    owed = await plane.put(router, params(), PROMPT, change)  # type: ignore[arg-type]
    await until(lambda: bool(owed.finishes), owed)
    assert owed.finishes[0].reason == types_pb2.FINISH_REASON_ERROR
    assert owed.finishes[0].error.type == "invalid_request_error"
    assert worker.engine.stats().computed_tokens == 0


def test_many_large_vectors_travel_in_several_messages() -> None:
    """As many as a message has room for: none is larger than what a router takes."""
    vector = bytes(4 * 4096)
    outbounds = []
    for number in range(5):
        work = Work((f"r{number}", 1), [1, 2], SamplingParams(seed=0, max_tokens=1), pooling=Pooling("mean", 4096))
        outbound = Outbound.of(work, router="r", attach=1)
        outbound.stream = number + 1
        outbound.begin({})
        outbound.extend(Delta(work, 0, 0, [], finish=Finish("stop", 0, vector=vector)))
        outbounds.append(outbound)
    counts = []
    while outbounds:
        message = Message()
        outbounds = [outbound for outbound in outbounds if outbound.fill(message)]
        body = message.whole()
        assert body is not None
        counts.append(len(body.finishes))
        assert all(finish.vector == vector for finish in body.finishes)
    assert counts == [MESSAGE_TOKENS // 4096, MESSAGE_TOKENS // 4096, 1]
