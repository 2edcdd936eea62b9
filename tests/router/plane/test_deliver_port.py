"""The Deliver port over a real socket: what no worker may say ends its stream and nothing else."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.router.delivery import Delivery
from services.router.sequencer import Binding, Held, Sequencer
from shared import rpc
from shared.pb import delivery_pb2, delivery_pb2_grpc

HELLO = delivery_pb2.Hello(version=1, worker_id="w", boot_id="b", fingerprint="f")
FromWorker = delivery_pb2.FromWorker


class Empty:
    """Nothing to follow."""

    def local(self, rid: str, tenant: str) -> None:
        return None


@asynccontextmanager
async def port(folder: Path) -> AsyncIterator[tuple[Sequencer, list[Binding], delivery_pb2_grpc.DeliveryStub]]:
    sequencer, broken = Sequencer(), []
    delivery = Delivery(sequencer, broken.extend, Empty())
    server = await rpc.serve(f"unix:{folder}/d", [(delivery_pb2_grpc.add_DeliveryServicer_to_server, delivery)])
    async with rpc.connect(server.address) as channel:
        yield sequencer, broken, delivery_pb2_grpc.DeliveryStub(channel)
    await server.stop(0)


async def test_one_answer_for_each_message_and_a_break_tells_what_was_bound(tmp_path: Path) -> None:
    async with port(tmp_path) as (sequencer, broken, stub):
        held = Held("r", 1, 1, None)
        sequencer.hold(held)
        call = stub.Deliver()
        await call.write(FromWorker(hello=HELLO, claimed=[delivery_pb2.Claimed(stream=1, rid="r", epoch=4)]))
        assert [begin.stream for begin in (await call.read()).begin] == [1]
        frames = delivery_pb2.Frames(stream=[1], choice=[0], idx=[0], count=[2], token_ids=[7, 8])
        await call.write(FromWorker(frames=frames))
        assert list((await call.read()).acks.num_tokens) == [2]
        assert held.choices[0].token_ids == [7, 8]
        call.cancel()
        async with asyncio.timeout(2):
            while not broken:
                await asyncio.sleep(0.005)
        assert [(binding.held.rid, binding.epoch) for binding in broken] == [("r", 4)]


async def how_it_ended(call: Any) -> grpc.StatusCode:
    with contextlib.suppress(grpc.aio.AioRpcError):
        while await call.read() is not grpc.aio.EOF:
            pass
    return await call.code()


@pytest.mark.parametrize(
    "messages",
    [
        [FromWorker()],
        [FromWorker(hello=delivery_pb2.Hello(version=9, worker_id="w", boot_id="b"))],
        [FromWorker(hello=delivery_pb2.Hello(version=1, boot_id="b"))],
        [FromWorker(hello=HELLO, frames=delivery_pb2.Frames(stream=[1], choice=[0], idx=[0], count=[5], token_ids=[1]))],
        [FromWorker(hello=HELLO, frames=delivery_pb2.Frames(stream=[1], count=[1], token_ids=[1]))],
        [
            FromWorker(hello=HELLO, claimed=[delivery_pb2.Claimed(stream=1, rid="r", epoch=4)]),
            FromWorker(frames=delivery_pb2.Frames(stream=[1], choice=[3], idx=[0], count=[1], token_ids=[1])),
        ],
        [FromWorker(hello=HELLO, claimed=[delivery_pb2.Claimed(stream=1, rid="r", epoch=epoch) for epoch in (4, 5)])],
    ],
)
async def test_what_no_worker_may_say(tmp_path: Path, messages: list[FromWorker]) -> None:
    async with port(tmp_path) as (sequencer, _, stub):
        sequencer.hold(Held("r", 1, 1, None))
        call = stub.Deliver()
        for message in messages:
            await call.write(message)
        assert await how_it_ended(call) is grpc.StatusCode.INVALID_ARGUMENT
        other = stub.Deliver()
        await other.write(FromWorker(hello=HELLO, claimed=[delivery_pb2.Claimed(stream=1, rid="gone", epoch=1)]))
        assert list((await other.read()).unknown) == [1]
        other.cancel()


async def test_what_is_not_here_cannot_be_followed(tmp_path: Path) -> None:
    async with port(tmp_path) as (_, _, stub):
        assert await stub.Follow(delivery_pb2.FollowRequest(rid="r", tenant="t")).code() is grpc.StatusCode.NOT_FOUND
