"""Routers and operators that send a worker what is no message: that stream ends and is counted, the worker goes on."""

import asyncio

import grpc
import pytest

from shared.pb import delivery_pb2_grpc, worker_pb2, worker_pb2_grpc
from shared.queue.registry import RouterFacts
from shared.rpc import connect, serve
from tests.garbled import NOISE, garble
from tests.worker.service.conftest import Plane, answer, params
from tests.worker.service.router_double import RouterDouble, until

PROMPT = list(range(40))


async def test_a_router_that_says_noise_and_then_speaks(plane: Plane) -> None:
    worker = await plane.worker()
    good, bad = await plane.router("r0"), RouterDouble(plane.folder, "r1")
    add = garble(delivery_pb2_grpc.add_DeliveryServicer_to_server, "roadtrain.Delivery", ["Deliver"])
    server = await serve(bad.address, [(add, bad)])
    await plane.registry.announce_router(RouterFacts("r1", "boot", bad.address))
    owed = await plane.put(bad, params(), PROMPT)
    async with asyncio.timeout(20):
        while worker.consumer.num_protocol_errors < 2:
            await asyncio.sleep(0.01)
    fine = await plane.put(good, params(), PROMPT)
    await until(lambda: fine.whole, fine)
    await server.stop(0)
    # The same router, mended: what it owes is delivered.
    await bad.start()
    plane.stack.push_async_callback(bad.stop)
    await until(lambda: owed.whole, owed, 20)
    assert owed.choices[0] == answer(PROMPT, params())
    assert not worker.failed


async def test_ids_that_are_none_are_not_gone_on_from(plane: Plane) -> None:
    """A router that claims to have accepted what no worker can have sent: computing on it would end the process."""
    router = await plane.router()
    owed = await plane.put(router, params(), PROMPT)
    owed.choices[0] = [1, 2, 5_000_000]
    worker = await plane.worker()
    async with asyncio.timeout(20):
        while worker.consumer.num_protocol_errors < 2:
            await asyncio.sleep(0.01)
    assert not worker.failed
    owed.choices[0] = []
    await until(lambda: owed.whole, owed, 20)
    assert owed.choices[0] == answer(PROMPT, params())


async def test_an_operator_s_noise(plane: Plane) -> None:
    worker = await plane.worker()
    async with connect(f"unix:{plane.folder}/w0.admin") as channel:
        for method in ("Status", "Drain"):
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary(f"/roadtrain.Worker/{method}")(NOISE)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary("/roadtrain.Worker/Explode")(b"")
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        status = await worker_pb2_grpc.WorkerStub(channel).Status(worker_pb2.StatusRequest())
    assert (status.num_protocol_errors, status.num_bad_payloads, status.draining) == (2, 0, False)
    assert not worker.failed
