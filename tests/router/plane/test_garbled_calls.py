"""What is no message, on every call between services: that call ends with an error and is counted, and nobody dies of it."""

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.router.auth import Identity
from services.router.delivery import Delivery
from services.router.sequencer import Held, Sequencer
from services.tokenizer.chat import ChatEncoder
from services.tokenizer.server import Grammars, TokenizerServicer
from services.worker.sim import expected_tokens
from shared import rpc
from shared.pb import delivery_pb2, delivery_pb2_grpc, tokenizer_pb2_grpc
from shared.queue.registry import RouterFacts
from shared.sampling import SamplingParams
from tests.garbled import NOISE, garble
from tests.router.plane.rig import SPEC, Rig, ask, listen, plane_of, rig, text_of, vocabulary
from tests.router.plane.test_deliver_port import HELLO, Empty, how_it_ended

FromWorker = delivery_pb2.FromWorker


def noise_of(rng: random.Random) -> bytes:
    """Truncated, random, or of another kind."""
    whole = FromWorker(hello=HELLO, frames=delivery_pb2.Frames(stream=[1], token_ids=[1] * 50)).SerializeToString()
    return rng.choice((NOISE, whole[: rng.randrange(1, len(whole) - 1)], rng.randbytes(rng.randrange(1, 300))))


async def test_a_deliver_port_that_is_sent_noise(tmp_path: Path) -> None:
    rng = random.Random(7)
    sequencer = Sequencer()
    sequencer.hold(Held("r", 1, 1, None))
    delivery = Delivery(sequencer, lambda _: None, Empty())
    server = await rpc.serve(f"unix:{tmp_path}/d", [(delivery_pb2_grpc.add_DeliveryServicer_to_server, delivery)])
    async with rpc.connect(server.address) as channel:
        stub = delivery_pb2_grpc.DeliveryStub(channel)
        good = stub.Deliver()
        await good.write(FromWorker(hello=HELLO, claimed=[delivery_pb2.Claimed(stream=1, rid="r", epoch=4)]))
        await good.read()
        for number in range(60):
            call = channel.stream_stream("/roadtrain.Delivery/Deliver")()
            if number % 2:
                await call.write(FromWorker(hello=HELLO).SerializeToString())
            # Some noise happens to be a message; nothing of this kind is.
            await call.write(noise_of(rng))
            try:
                await call.write(NOISE)
            except grpc.aio.AioRpcError:
                # It had ended before this could be sent; gRPC then tells of that alone.
                continue
            assert await how_it_ended(call) is grpc.StatusCode.INVALID_ARGUMENT
        follow: Any = channel.unary_stream("/roadtrain.Delivery/Follow")(NOISE)
        assert await how_it_ended(follow) is not grpc.StatusCode.OK
        assert server.num_undecodable + delivery.num_refused == 61
        await good.write(FromWorker(frames=delivery_pb2.Frames(stream=[1], choice=[0], idx=[0], count=[1], token_ids=[5])))
        assert list((await good.read()).acks.num_tokens) == [1]
        good.cancel()
    await server.stop(0)


async def add_garbled_tokenizer(made: Rig, method: str) -> rpc.Server:
    """A replica whose answers to one method are noise."""
    chats, grammars = ChatEncoder(vocabulary(), lambda *_: ""), Grammars.of(vocabulary(), 1)
    servicer = TokenizerServicer(vocabulary(), chats, ThreadPoolExecutor(1), grammars)
    add = garble(tokenizer_pb2_grpc.add_TokenizerServicer_to_server, "roadtrain.Tokenizer", [method])
    server = await rpc.serve(f"unix:{made.folder}/garbled", [(add, servicer)])
    made.tokenizers.insert(0, server)
    return server


@pytest.mark.parametrize("method", ["Describe", "Encode", "Decode", "Vocabulary"])
async def test_a_tokenizer_that_answers_with_noise_is_passed_by(method: str) -> None:
    async with rig(num_tokenizers=1) as made:
        await add_garbled_tokenizer(made, method)
        async with plane_of(made) as plane:
            params = SamplingParams(seed=3, max_tokens=30, stop=("qqqqq",))
            for number in range(3):
                generation = await plane.generator.start(ask(prompt=f"Once upon a time {number}", sampling=params))
                (heard,) = await listen(generation)
                expected, _ = expected_tokens(SPEC, generation.prompt_token_ids, params)
                assert (heard.token_ids, heard.text) == (expected, text_of(expected))
            assert plane.num_protocol_errors >= 1


async def test_a_router_that_is_followed_and_says_noise() -> None:
    """It answers to the name in the record, but what it says is none: the client's own router takes the request up."""
    async with rig() as made, plane_of(made, "r0") as first:
        params = SamplingParams(seed=4, max_tokens=300)
        generation = await first.generator.start(ask(sampling=params))
        listening = asyncio.create_task(listen(generation))
        add = garble(delivery_pb2_grpc.add_DeliveryServicer_to_server, "roadtrain.Delivery", ["Follow"])
        server = await rpc.serve(f"unix:{made.folder}/noise", [(add, first.delivery)])
        await first.registry.announce_router(RouterFacts("r0", "boot", server.address))
        async with plane_of(made, "r1") as second:
            resumed, _ = await second.generator.resume(generation.rid, "", Identity("t"))
            (heard,) = await listen(resumed)
            expected, _ = expected_tokens(SPEC, generation.prompt_token_ids, params)
            assert heard.token_ids == expected
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await server.stop(0)


async def test_a_tokenizer_that_is_sent_noise_serves_the_others() -> None:
    async with rig(num_tokenizers=1) as made, rpc.connect(made.tokenizers[0].address) as channel:
        for _ in range(5):
            call = channel.stream_stream("/roadtrain.Tokenizer/Decode")()
            await call.write(NOISE)
            assert await how_it_ended(call) is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary("/roadtrain.Tokenizer/Encode")(NOISE)
        assert made.tokenizers[0].num_undecodable == 6
        async with plane_of(made) as plane:
            (heard,) = await listen(
                await plane.generator.start(ask(sampling=SamplingParams(seed=1, max_tokens=4, stop=("qqqqq",))))
            )
            assert len(heard.token_ids) == 4
