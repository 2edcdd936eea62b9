"""A gRPC server as services start it: health, error mapping, limits, a port in use. Over a real socket."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shared.errors import InvalidRequest, StartupError, Unavailable
from shared.pb import worker_pb2, worker_pb2_grpc
from shared.rpc import connect, serve


class Worker(worker_pb2_grpc.WorkerServicer):
    """Fails as told."""

    async def Status(self, request, context):
        raise InvalidRequest("top_p is 3\u20ac", param="top_p\u20ac", code="invalid_value")

    async def Drain(self, request, context):
        if request.grace_s == 1:
            raise Unavailable("draining", code="draining", retry_after_s=1.5)
        raise ValueError("secret detail")


@pytest.fixture
async def channel(tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    server = await serve(f"unix:{tmp_path}/s", [(worker_pb2_grpc.add_WorkerServicer_to_server, Worker())])
    async with connect(server.address) as channel:
        yield channel
    await server.stop(0)


async def test_errors_become_statuses_with_their_fields(channel: grpc.aio.Channel) -> None:
    stub = worker_pb2_grpc.WorkerStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Status(worker_pb2.StatusRequest())
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "top_p is 3\u20ac"
    trailing = dict(caught.value.trailing_metadata())
    assert trailing["roadtrain-error-code"] == "invalid_value"
    assert trailing["roadtrain-error-param"] == "top_p?"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Drain(worker_pb2.DrainRequest(grace_s=1))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert dict(caught.value.trailing_metadata())["roadtrain-retry-after-s"] == "1.500"


async def test_a_bug_shows_no_detail(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await worker_pb2_grpc.WorkerStub(channel).Drain(worker_pb2.DrainRequest())
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert "secret" not in (caught.value.details() or "")


async def test_health(channel: grpc.aio.Channel) -> None:
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_port_in_use_is_one_line_that_names_the_setting() -> None:
    first = await serve("127.0.0.1:0", [])
    with pytest.raises(StartupError, match=r"cannot listen on 127\.0\.0\.1:\d+.*choose another with --tokenizer\.address"):
        await serve(first.address, [], setting="--tokenizer.address")
    await first.stop(0)


async def test_a_port_may_be_shared_if_both_say_so() -> None:
    first = await serve("127.0.0.1:0", [], share_port=True)
    second = await serve(first.address, [], share_port=True)
    assert first.address == second.address
    await second.stop(0)
    await first.stop(0)
