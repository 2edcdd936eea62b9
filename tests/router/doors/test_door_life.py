"""Health, readiness, metrics, strict fields, and how a router ends."""

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.router.server import Doors, serve
from shared import rpc
from shared.config import RouterConfig, Settings
from shared.errors import StartupError
from shared.pb import router_pb2, router_pb2_grpc
from tests.router.doors.conftest import settings
from tests.router.doors.fake_plane import FakePlane
from tests.router.doors.wire import connect, post_once

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHAT_URL = "/v1/chat/completions"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


async def test_ready_and_not(client: httpx.AsyncClient, doors: Doors, plane: FakePlane) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{doors.admin_port}") as admin:
        for asked in (client, admin):
            for path in ("/health", "/readyz", "/livez", "/version"):
                assert (await asked.get(path)).status_code == 200
            plane.why_not_ready = "no worker"
            for path, status in (("/health", 503), ("/readyz", 503), ("/livez", 200)):
                answer = await asked.get(path)
                assert answer.status_code == status
                assert "no worker" in answer.text or status == 200
            plane.why_not_ready = None
        assert (await admin.get("/v1/models")).status_code == 404
        assert (await client.get("/metrics")).status_code == 404
        await client.get("/v1/models")
        text = (await admin.get("/metrics")).text
    assert 'roadtrain_router_requests_total{door="http",endpoint="/v1/models",status="200"} ' in text
    assert "roadtrain_router_open_requests 1\n" in text


async def test_grpc_health_says_the_same(doors: Doors, plane: FakePlane) -> None:
    async with rpc.connect(f"127.0.0.1:{doors.grpc_port}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        for why_not, status in ((None, "SERVING"), ("no worker", "NOT_SERVING"), (None, "SERVING")):
            plane.why_not_ready = why_not
            wanted = health_pb2.HealthCheckResponse.ServingStatus.Value(status)
            while (await asyncio.wait_for(watch.read(), 10)).status != wanted:
                pass
        watch.cancel()


async def test_names_without_end_make_no_metrics_without_end(client: httpx.AsyncClient, doors: Doors) -> None:
    await client.request("FOO", "/a")
    before = len(doors.front.answered)
    for number in range(20):
        await client.request("FOO", f"/a{number}")
    assert len(doors.front.answered) == before


async def test_strict_refuses_what_nobody_knows() -> None:
    doors = await serve(settings(strict=True), FakePlane())
    status, answer = await post_once(doors.port, CHAT_URL, CHAT | {"foo": 1})
    assert status == 400
    assert json.loads(answer)["error"]["code"] == "unknown_parameter"
    assert json.loads(answer)["error"]["param"] == "foo"
    for path, body, name in NESTED:
        status, answer = await post_once(doors.port, path, body)
        assert status >= 400
        assert f"Unknown parameter: '{name}'" in json.dumps(json.loads(answer)["error"])
    # What has no effect here is known all the same.
    assert (await post_once(doors.port, CHAT_URL, CHAT | {"store": True, "user": "me"}))[0] == 200
    await doors.stop(0.0)


NESTED = [
    (CHAT_URL, CHAT | {"stream": True, "stream_options": {"foo": 1}}, "stream_options.foo"),
    ("/tokenize", {"prompt": "x", "foo": 1}, "foo"),
    ("/api/chat", CHAT | {"options": {"foo": 1}}, "options.foo"),
    ("/generate", {"inputs": "x", "parameters": {"foo": 1}}, "parameters.foo"),
]


async def last_of(call: Any) -> router_pb2.Event:
    """The last event of a call that is being read."""
    last = router_pb2.Event()
    while (event := await call.read()) is not grpc.aio.EOF:
        last = event
    return last


async def test_open_streams_end_whole_when_the_router_stops() -> None:
    plane = FakePlane()
    doors = await serve(settings(), plane)
    held = CHAT | {"messages": [{"role": "user", "content": "hold"}], "stream": True}
    streamed = asyncio.create_task(post_once(doors.port, CHAT_URL, held))
    await plane.started.wait()
    async with connect(doors.port) as idle, rpc.connect(f"127.0.0.1:{doors.grpc_port}") as channel:
        message = {"role": "user", "content": "hold"}
        call = router_pb2_grpc.RouterStub(channel).Chat(router_pb2.ChatRequest(model="tiny", chat={"messages": [message]}))
        await call.read()
        assert (await idle.post(CHAT_URL, CHAT))[0] == 200
        stopping = asyncio.create_task(doors.stop(5.0))
        while not doors.front.draining:
            await asyncio.sleep(0)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{doors.admin_port}") as admin:
            assert (await admin.get("/readyz")).status_code == 503
        for generation in plane.generations:
            generation.go_on.set()
        status, answer = await streamed
        assert status == 200
        assert b"[DONE]" in answer
        assert (await last_of(call)).HasField("usage")
        await asyncio.wait_for(stopping, 5)
    with pytest.raises(ConnectionRefusedError):
        await post_once(doors.port, CHAT_URL, CHAT)


async def test_streams_that_outlast_the_grace_end_with_an_error() -> None:
    plane = FakePlane()
    doors = await serve(Settings(router=RouterConfig(port=0, grpc_port=0, admin_port=0, drain_grace_s=0.1)), plane)
    held = CHAT | {"messages": [{"role": "user", "content": "hold"}], "stream": True}
    streamed = asyncio.create_task(post_once(doors.port, CHAT_URL, held))
    await plane.started.wait()
    await asyncio.wait_for(doors.stop(0.1), 5)
    assert plane.generations[0].cancelled == ["disconnect"]
    _, answer = await streamed
    assert b'"code":"draining"' in answer
    assert b"[DONE]" not in answer


async def test_while_draining_new_work_is_refused(client: httpx.AsyncClient, doors: Doors) -> None:
    doors.front.draining = True
    answer = await client.post(CHAT_URL, json=CHAT)
    async with rpc.connect(f"127.0.0.1:{doors.grpc_port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await router_pb2_grpc.RouterStub(channel).Chat(router_pb2.ChatRequest(model="tiny")).read()
    doors.front.draining = False
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "draining"
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("setting", ["port", "grpc_port", "admin_port"])
async def test_a_port_in_use_is_one_line_and_leaves_nothing_open(setting: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = {"port": 0, "grpc_port": 0, "admin_port": 0} | {setting: port}
        with pytest.raises(StartupError, match=f"127.0.0.1:{port}.*{setting}"):
            await serve(Settings(router=RouterConfig(**ports)), FakePlane())


async def test_admin_on_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    doors = await serve(settings(admin_socket=path), FakePlane())
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path)), base_url="http://localhost") as admin:
        assert (await admin.get("/readyz")).status_code == 200
    await doors.stop(0.0)
