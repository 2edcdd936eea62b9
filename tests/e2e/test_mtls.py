"""A whole system with certificates on everything: tokens flow, and whoever is not what a call is for gets nothing.

Real processes, real handshakes; the certificates are those that `roadtrain certs` makes.
"""

import asyncio
import contextlib
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.launcher import certs
from shared.mtls import CALLERS, ROLES, Papers, Role, name_of, read_papers
from shared.pb import (
    delivery_pb2,
    delivery_pb2_grpc,
    router_pb2,
    router_pb2_grpc,
    tokenizer_pb2,
    tokenizer_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)
from shared.rpc import connect
from tests import stack
from tests.certificates import write_server_certificate
from tests.stack import ROOT, Stack, environment, roadtrain

SERVERS: dict[str, Role] = {"tokenizer": "tokenizer", "deliver": "router", "worker": "worker"}


@dataclass
class Sealed:
    """A system, its certificates, and those of an authority that nobody here knows."""

    stack: Stack
    folder: Path
    stranger: Path
    server: Path

    def papers(self, role: Role) -> Papers:
        found = read_papers(self.folder, role)
        assert found is not None
        return found

    def socket(self, server: str) -> str:
        return f"unix:{self.stack.sockets(server)[0]}"

    async def refused(self) -> int:
        async with httpx.AsyncClient() as client:
            text = (await client.get(f"{self.stack.admin_url}/metrics")).text
        return int(text.split("\nroadtrain_router_refused_peers_total ")[1].split("\n")[0])


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sealed]:
    folder = tmp_path_factory.mktemp("mtls")
    done = subprocess.run(
        roadtrain("certs", str(folder / "certs")), cwd=ROOT, env=environment(folder), timeout=60, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    certs.make(folder / "stranger")
    certificate, key = write_server_certificate(folder)
    flags = ("--certs-dir", str(folder / "certs"), "--tls-cert-file", str(certificate), "--tls-key-file", str(key))
    running = stack.start(folder, "--runner", "sim", "--num-workers", "2", *flags)
    yield Sealed(running, folder / "certs", folder / "stranger", certificate)
    assert running.stop() == 0, running.log.read_text()[-3000:]


def test_the_files_are_their_owners_alone(sealed: Sealed) -> None:
    files = {file.name: file.stat().st_mode & 0o777 for file in sealed.folder.iterdir()}
    assert set(files) == {"ca.pem", "ca-key.pem", *(f"{role}{end}" for role in ROLES for end in (".pem", "-key.pem"))}
    assert set(files.values()) == {0o600}


async def test_tokens_flow(sealed: Sealed) -> None:
    """HTTPS and gRPC over TLS to the client; tokenizer, Deliver and the workers over mTLS."""
    context = ssl.create_default_context(cafile=str(sealed.server))
    url = sealed.stack.url.replace("http:", "https:")
    body = {"model": "default", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20, "ignore_eos": True}
    async with httpx.AsyncClient(base_url=url, verify=context, timeout=60) as client:
        answer = await client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] == 20
        streamed = await client.post("/v1/chat/completions", json=body | {"stream": True})
        assert streamed.text.endswith("data: [DONE]\n\n")
    credentials = grpc.ssl_channel_credentials(sealed.server.read_bytes())
    async with grpc.aio.secure_channel(sealed.stack.grpc_address, credentials) as channel:
        models = await router_pb2_grpc.RouterStub(channel).ListModels(router_pb2.ListModelsRequest(), timeout=20)
        assert len(models.models) == 2


async def test_the_doors_speak_nothing_but_tls(sealed: Sealed) -> None:
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.TransportError):
            await client.get(f"{sealed.stack.url}/livez")
    async with grpc.aio.insecure_channel(sealed.stack.grpc_address) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await router_pb2_grpc.RouterStub(channel).ListModels(router_pb2.ListModelsRequest(), timeout=5)
    for port in (sealed.stack.port, sealed.stack.port + 1):
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.load_verify_locations(sealed.server)
        old.set_ciphers("ALL:@SECLEVEL=0")
        old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", port, ssl=old)


def stub_call(channel: grpc.aio.Channel, method: str) -> Any:
    """A call of that name with an empty message."""
    match method:
        case "/roadtrain.Tokenizer/Describe":
            return tokenizer_pb2_grpc.TokenizerStub(channel).Describe(tokenizer_pb2.DescribeRequest(), timeout=20)
        case "/roadtrain.Tokenizer/Encode":
            return tokenizer_pb2_grpc.TokenizerStub(channel).Encode(tokenizer_pb2.EncodeRequest(), timeout=20)
        case "/roadtrain.Delivery/Deliver":
            return delivery_pb2_grpc.DeliveryStub(channel).Deliver(iter([delivery_pb2.FromWorker()]), timeout=20)
        case "/roadtrain.Delivery/Follow":
            return delivery_pb2_grpc.DeliveryStub(channel).Follow(delivery_pb2.FollowRequest(), timeout=20)
        case "/roadtrain.Worker/Drain":
            return worker_pb2_grpc.WorkerStub(channel).Drain(worker_pb2.DrainRequest(), timeout=20)
        case _:
            return worker_pb2_grpc.WorkerStub(channel).Status(worker_pb2.StatusRequest(), timeout=20)


async def ended(call: Any) -> grpc.StatusCode:
    with contextlib.suppress(grpc.aio.AioRpcError):
        if isinstance(call, grpc.aio.UnaryUnaryCall):
            await call
        else:
            async for _ in call:
                pass
    code: grpc.StatusCode = await call.code()
    return code


METHODS = {
    "/roadtrain.Tokenizer/Describe": ("tokenizer", {"router"}, grpc.StatusCode.OK),
    "/roadtrain.Tokenizer/Encode": ("tokenizer", {"router"}, grpc.StatusCode.OK),
    "/roadtrain.Delivery/Deliver": ("deliver", {"worker"}, grpc.StatusCode.INVALID_ARGUMENT),
    "/roadtrain.Delivery/Follow": ("deliver", {"router"}, grpc.StatusCode.NOT_FOUND),
    "/roadtrain.Worker/Status": ("worker", {"admin"}, grpc.StatusCode.OK),
}


@pytest.mark.parametrize("method", METHODS)
async def test_each_call_is_for_one_role(sealed: Sealed, method: str) -> None:
    """Who may is answered (what an empty message deserves); everybody else, of the same authority, is refused and counted."""
    server, allowed, answer = METHODS[method]
    before = await sealed.refused()
    for role in ROLES:
        async with connect(sealed.socket(server), sealed.papers(role).peer(SERVERS[server])) as channel:
            wanted = answer if role in allowed else grpc.StatusCode.PERMISSION_DENIED
            # A stream that is refused while the client still sends may end for it before it hears why.
            unheard = {grpc.StatusCode.INTERNAL} if method.endswith("/Deliver") else set()
            assert await ended(stub_call(channel, method)) in {wanted} | unheard, role
    if server == "deliver":
        assert await sealed.refused() == before + len(ROLES) - len(allowed)
    else:
        assert "a call was refused" in sealed.stack.log.read_text()


async def test_no_other_call_than_those_is_anyones(sealed: Sealed) -> None:
    """The table is the whole truth: every service between services has a row, and nobody may drain but an admin."""
    services = [tokenizer_pb2.DESCRIPTOR, delivery_pb2.DESCRIPTOR, worker_pb2.DESCRIPTOR]
    for descriptor in services:
        for service in descriptor.services_by_name.values():
            for method in service.methods:
                name = f"/roadtrain.{service.name}"
                assert len(CALLERS.get(f"{name}/{method.name}") or CALLERS[name]) == 1
    async with connect(sealed.socket("worker"), sealed.papers("worker").peer("worker")) as channel:
        assert await ended(stub_call(channel, "/roadtrain.Worker/Drain")) is grpc.StatusCode.PERMISSION_DENIED


@contextlib.asynccontextmanager
async def channel_of(sealed: Sealed, kind: str, server: str) -> AsyncIterator[grpc.aio.Channel]:
    """A caller with nothing, with half of it, or with what somebody else signed."""
    authority = (sealed.folder / "ca.pem").read_bytes()
    role: Role = {"tokenizer": "router", "deliver": "worker", "worker": "admin"}[server]  # type: ignore[assignment]
    strange = read_papers(sealed.stranger, role)
    assert strange is not None
    name = [("grpc.ssl_target_name_override", name_of(SERVERS[server])), ("grpc.use_local_subchannel_pool", 1)]
    if kind == "in the clear":
        made = grpc.aio.insecure_channel(sealed.socket(server), options=name)
    elif kind == "no certificate":
        made = grpc.aio.secure_channel(sealed.socket(server), grpc.ssl_channel_credentials(authority), options=name)
    else:
        credentials = grpc.ssl_channel_credentials(authority, strange.key, strange.certificate)
        made = grpc.aio.secure_channel(sealed.socket(server), credentials, options=name)
    async with made as channel:
        yield channel


@pytest.mark.parametrize("kind", ["in the clear", "no certificate", "another authority"])
@pytest.mark.parametrize("server", SERVERS)
async def test_a_stranger_gets_no_answer_at_all(sealed: Sealed, kind: str, server: str) -> None:
    """Security.md 02 and 03: the handshake fails, for the health service, too."""
    method = {"tokenizer": "/roadtrain.Tokenizer/Describe", "deliver": "/roadtrain.Delivery/Follow", "worker": ""}[server]
    async with channel_of(sealed, kind, server) as channel:
        assert await ended(stub_call(channel, method)) is grpc.StatusCode.UNAVAILABLE
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
        assert await ended(health) is grpc.StatusCode.UNAVAILABLE


async def test_a_server_of_another_role_or_authority_is_not_talked_to(sealed: Sealed) -> None:
    """Who dials checks as well: a worker that answers at the tokenizer's address gets no prompt."""
    for peer in (sealed.papers("router").peer("router"), read_papers(sealed.stranger, "router").peer("tokenizer")):  # type: ignore[union-attr]
        async with connect(sealed.socket("tokenizer"), peer) as channel:
            assert await ended(stub_call(channel, "/roadtrain.Tokenizer/Describe")) is grpc.StatusCode.UNAVAILABLE


async def test_renewed_certificates_go_with_the_old_ones(sealed: Sealed) -> None:
    """`roadtrain certs` again: new certificates of the same authority, good at servers that were not restarted."""
    authority, old = (sealed.folder / "ca.pem").read_bytes(), (sealed.folder / "router.pem").read_bytes()
    certs.make(sealed.folder)
    assert (sealed.folder / "ca.pem").read_bytes() == authority
    assert (sealed.folder / "router.pem").read_bytes() != old
    async with connect(sealed.socket("tokenizer"), sealed.papers("router").peer("tokenizer")) as channel:
        assert await ended(stub_call(channel, "/roadtrain.Tokenizer/Describe")) is grpc.StatusCode.OK
