"""Who gets in over gRPC: every call with no key, a wrong one and a good one; the health service is open, as probes need it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shared import rpc
from shared.pb import router_pb2, router_pb2_grpc, tokenizer_pb2
from tests.router.doors.fake_plane import FakePlane
from tests.router.doors.keys import doors_with, write_keys

pytestmark = pytest.mark.asyncio(loop_scope="module")
CALLS = {method.name: method for method in router_pb2.DESCRIPTOR.services_by_name["Router"].methods}
CHAT = tokenizer_pb2.Chat(messages=[tokenizer_pb2.ChatMessage(role="user", content="hi")])


@dataclass
class Locked:
    """A channel to a door with keys."""

    channel: grpc.aio.Channel
    plane: FakePlane
    keys: dict[str, str]

    def metadata(self, who: str = "alice") -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.keys[who]}"),)

    def call(self, name: str, request: Any, metadata: Any) -> Any:
        """Any call of the service, by name."""
        method = CALLS[name]
        make = self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
        read = getattr(router_pb2, method.output_type.name).FromString
        path = f"/roadtrain.Router/{name}"
        return make(path, type(request).SerializeToString, read)(request, metadata=metadata, timeout=10)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def locked(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Locked]:
    file = tmp_path_factory.mktemp("keys") / "keys.yaml"
    keys = write_keys(file, {"alice": {}, "bob": {"models": ["tiny"]}})
    async with doors_with(file) as (doors, plane), rpc.connect(f"127.0.0.1:{doors.grpc_port}") as channel:
        yield Locked(channel, plane, keys)


async def code_of(call: Any) -> grpc.StatusCode:
    code: grpc.StatusCode = await call.code()
    return code


@pytest.mark.parametrize("name", sorted(CALLS))
async def test_every_call_asks_for_a_key(locked: Locked, name: str) -> None:
    """What is added to router.proto is asked here by itself."""
    request = getattr(router_pb2, CALLS[name].input_type.name)()
    good = locked.metadata()
    for metadata in (
        (),
        (("authorization", ""),),
        (("authorization", "Bearer sk-rt-wrong"),),
        (("authorization", f"Basic {locked.keys['alice']}"),),
        (*good, *good),
        (("x-api-key", locked.keys["alice"]),),
        (("authorization-bin", good[0][1].encode()),),
    ):
        call = locked.call(name, request, metadata)
        assert await code_of(call) is grpc.StatusCode.UNAUTHENTICATED, metadata
        assert locked.keys["alice"] not in (await call.details())
    assert await code_of(locked.call(name, request, good)) is not grpc.StatusCode.UNAUTHENTICATED


async def test_what_is_no_call_is_not_told_to_strangers(locked: Locked) -> None:
    for metadata, wanted in (((), grpc.StatusCode.UNAUTHENTICATED), (locked.metadata(), grpc.StatusCode.UNIMPLEMENTED)):
        for make in (locked.channel.unary_unary, locked.channel.unary_stream):
            call = make("/roadtrain.Router/Nothing")(b"", metadata=metadata, timeout=10)
            assert await code_of(call) is wanted


async def test_health_is_open(locked: Locked) -> None:
    answer = await health_pb2_grpc.HealthStub(locked.channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_key_has_its_models(locked: Locked) -> None:
    stub = router_pb2_grpc.RouterStub(locked.channel)
    models = await stub.ListModels(router_pb2.ListModelsRequest(), metadata=locked.metadata("bob"))
    assert [model.id for model in models.models] == ["tiny"]
    for name, wanted, code in (("default", "PERMISSION_DENIED", "model_not_allowed"), ("nobody", "NOT_FOUND", "model_not_found")):
        call = stub.Chat(router_pb2.ChatRequest(model=name, chat=CHAT), metadata=locked.metadata("bob"))
        assert (await code_of(call)).name == wanted
        assert dict(await call.trailing_metadata())[rpc.ERROR_CODE_KEY] == code
    events = [
        event async for event in stub.Chat(router_pb2.ChatRequest(model="tiny", chat=CHAT), metadata=locked.metadata("bob"))
    ]
    assert events[0].begun.rid == locked.plane.generations[-1].rid
    assert locked.plane.generations[-1].request.tenant == "bob"


async def test_another_tenants_stream_is_one_that_never_was(locked: Locked) -> None:
    stub = router_pb2_grpc.RouterStub(locked.channel)
    async for _ in stub.Chat(router_pb2.ChatRequest(model="tiny", chat=CHAT), metadata=locked.metadata()):
        pass
    rid = locked.plane.generations[-1].rid
    ended = []
    for name in (rid, rid[:-1] + "x", "0" * 34):
        call = stub.Resume(router_pb2.ResumeRequest(rid=name), metadata=locked.metadata("bob"))
        ended.append((await code_of(call), await call.details(), tuple(await call.trailing_metadata())))
    assert ended[0][0] is grpc.StatusCode.NOT_FOUND
    assert len(set(ended)) == 1
