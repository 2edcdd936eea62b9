"""The gRPC door: the same answers, the same checks and errors, and an end when the client goes."""

import asyncio
import struct
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

from services.router.server import Doors
from shared import rpc
from shared.pb import router_pb2, router_pb2_grpc, tokenizer_pb2, types_pb2
from tests.router.doors.fake_plane import FakePlane

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stub(doors: Doors) -> AsyncIterator[router_pb2_grpc.RouterStub]:
    async with rpc.connect(f"127.0.0.1:{doors.grpc_port}") as channel:
        yield router_pb2_grpc.RouterStub(channel)


def chat(text: str = "hi", **options: Any) -> router_pb2.ChatRequest:
    messages = [tokenizer_pb2.ChatMessage(role="user", content=text)]
    return router_pb2.ChatRequest(model="tiny", chat=tokenizer_pb2.Chat(messages=messages), options=router_pb2.Options(**options))


async def all_of(call: Any) -> list[router_pb2.Event]:
    return [event async for event in call]


async def test_chat(stub: Any, plane: FakePlane) -> None:
    sampling = types_pb2.Sampling(temperature=0, n=2, num_logprobs=1, seed=7)
    events = await all_of(stub.Chat(chat(sampling=sampling, band=3, cache_salt="s", idempotency_key="k", deadline_ms=9000)))
    generation = plane.generations[-1]
    begun = events[0].begun
    assert (begun.rid, begun.model, begun.created, begun.num_prompt_tokens) == (generation.rid, "tiny", 1_700_000_000, 2)
    texts = ["".join(event.delta.text for event in events if event.delta.choice == choice) for choice in (0, 1)]
    assert texts == ["Hello wörld!"] * 2
    deltas = [event.delta for event in events if event.HasField("delta")]
    assert deltas[0].logprobs.width == 2
    assert list(deltas[0].token_ids) == [0]
    ends = [event.finished for event in events if event.HasField("finished")]
    assert [(end.choice, end.reason, end.stop_token_id) for end in ends] == [
        (0, types_pb2.FINISH_REASON_STOP, 4),
        (1, types_pb2.FINISH_REASON_STOP, 4),
    ]
    assert events[-1].usage.num_output_tokens == 10
    assert all(event.position.startswith(generation.rid) for event in events)
    request = generation.request
    assert (request.sampling.seed, request.band, request.cache_salt) == (7, 3, "s")
    assert (request.idempotency_key, request.deadline_ms) == ("k", 9000)


async def test_complete(stub: Any, plane: FakePlane) -> None:
    asked = router_pb2.CompleteRequest(model="org/alias", text="one", echo=True)
    assert (await all_of(stub.Complete(asked)))[1].delta.text == "The prompt"
    sampling = types_pb2.Sampling(num_prompt_logprobs=0)
    asked = router_pb2.CompleteRequest(
        model="tiny", token_ids=struct.pack("<3I", 1, 2, 3), options=router_pb2.Options(sampling=sampling)
    )
    events = await all_of(stub.Complete(asked))
    assert list(events[0].begun.prompt_logprobs.token_ids) == [2, 3]
    assert plane.generations[-1].request.prompt == [1, 2, 3]


async def test_the_calls_own_deadline_counts(stub: Any, plane: FakePlane) -> None:
    await all_of(stub.Chat(chat(deadline_ms=60_000), timeout=20))
    assert 10_000 < plane.generations[-1].request.deadline_ms <= 21_000  # gRPC rounds up on the way


BAD_CHAT = tokenizer_pb2.Chat(messages=[tokenizer_pb2.ChatMessage(role="root", content="x")])
TOOLS = tokenizer_pb2.Chat(messages=[tokenizer_pb2.ChatMessage(role="user", content="x")], tools_json=["{}"])
ERRORS = [
    ("Chat", chat(sampling=types_pb2.Sampling(temperature=3)), "INVALID_ARGUMENT", "decimal_above_max_value", "temperature"),
    ("Chat", chat(sampling=types_pb2.Sampling(temperature=float("nan"))), "INVALID_ARGUMENT", "invalid_value", "temperature"),
    ("Chat", chat(sampling=types_pb2.Sampling(n=10**9)), "INVALID_ARGUMENT", "integer_above_max_value", "n"),
    ("Chat", chat(sampling=types_pb2.Sampling(num_logprobs=128)), "INVALID_ARGUMENT", "integer_above_max_value", "num_logprobs"),
    ("Chat", chat(band=10), "INVALID_ARGUMENT", "invalid_value", "band"),
    ("Chat", chat(cache_salt="\x00"), "INVALID_ARGUMENT", "invalid_value", "cache_salt"),
    ("Chat", router_pb2.ChatRequest(model="tiny"), "INVALID_ARGUMENT", "empty_array", "messages"),
    ("Chat", router_pb2.ChatRequest(model="tiny", chat=BAD_CHAT), "INVALID_ARGUMENT", "invalid_value", "messages[0].role"),
    ("Chat", router_pb2.ChatRequest(model="tiny", chat=TOOLS), "INVALID_ARGUMENT", "invalid_value", "tools_json[0]"),
    ("Chat", router_pb2.ChatRequest(chat=chat().chat), "INVALID_ARGUMENT", "missing_required_parameter", "model"),
    ("Chat", router_pb2.ChatRequest(model="nobody", chat=chat().chat), "NOT_FOUND", "model_not_found", "model"),
    ("Chat", chat("refuse"), "UNAVAILABLE", "overloaded", None),
    ("Chat", chat("break"), "INTERNAL", "internal_error", None),
    ("Chat", chat("crash"), "INTERNAL", "internal_error", None),
    ("Complete", router_pb2.CompleteRequest(model="tiny"), "INVALID_ARGUMENT", "empty_string", "text"),
    ("Complete", router_pb2.CompleteRequest(model="tiny", token_ids=b"abc"), "INVALID_ARGUMENT", "invalid_value", "token_ids"),
    ("Resume", router_pb2.ResumeRequest(rid="x"), "NOT_FOUND", "stream_not_found", None),
]


@pytest.mark.parametrize(("method", "asked", "status", "code", "param"), ERRORS)
async def test_errors(stub: Any, method: str, asked: Any, status: str, code: str, param: str | None) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await all_of(getattr(stub, method)(asked))
    trailing = dict(caught.value.trailing_metadata())
    assert caught.value.code().name == status
    assert trailing.get(rpc.ERROR_CODE_KEY) == code
    assert trailing.get(rpc.ERROR_PARAM_KEY) == param
    assert "secret" not in caught.value.details()


async def test_cancel(stub: Any, plane: FakePlane) -> None:
    call = stub.Chat(chat("slow"))
    begun = (await call.read()).begun
    reply = await stub.Cancel(router_pb2.CancelRequest(rid=begun.rid))
    assert reply.cancelled
    with pytest.raises(grpc.aio.AioRpcError):
        await call.read()
    for rid, status in (("unknown", grpc.StatusCode.NOT_FOUND), ("", grpc.StatusCode.INVALID_ARGUMENT)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Cancel(router_pb2.CancelRequest(rid=rid))
        assert caught.value.code() == status


@pytest.mark.parametrize("text", ["slow", "hold"])
async def test_a_client_that_leaves_ends_its_request(stub: Any, plane: FakePlane, doors: Doors, text: str) -> None:
    call = stub.Chat(chat(text))
    await call.read()
    call.cancel()
    await asyncio.wait_for(plane.generations[-1].over.wait(), 1)
    assert plane.generations[-1].cancelled[0] == "disconnect"
    assert doors.front.answered["grpc", "Chat", "CANCELLED"] > 0


async def test_a_channel_that_breaks_ends_its_requests(doors: Doors, plane: FakePlane) -> None:
    channel = rpc.connect(f"127.0.0.1:{doors.grpc_port}")
    call = router_pb2_grpc.RouterStub(channel).Chat(chat("slow"))
    await call.read()
    await channel.close()
    await asyncio.wait_for(plane.generations[-1].over.wait(), 1)


async def test_models(stub: Any) -> None:
    reply = await stub.ListModels(router_pb2.ListModelsRequest())
    assert [(model.id, model.max_model_len) for model in reply.models] == [("tiny", 100), ("org/alias", 100), ("default", 100)]
