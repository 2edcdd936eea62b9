"""A running system under attack, and the examination after each attempt: the same worker process, the same tokens, no growth.

It knows how the services can be asked how they are, and nothing of what is done to them.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from services.worker.sim import SimSpec, expected_tokens
from shared.pb import worker_pb2, worker_pb2_grpc
from shared.rpc import connect
from shared.sampling import SamplingParams
from tests.router.plane.rig import text_of
from tests.stack import Stack

SPEC = SimSpec(vocab_size=49152, max_model_len=512)
# Steps take no time, and what asks for no end has one soon.
FLAGS = ("--runner", "sim", "--worker.sim-step-ms", "0", "--worker.sim-step-ms-per-seq", "0", "--max-model-len", "512")
CANARY = {"model": "default", "prompt": [7, 8, 9], "max_tokens": 6, "seed": 3, "ignore_eos": True}
CANARY_SAMPLING = SamplingParams(seed=3, max_tokens=6, ignore_eos=True)
# What a process may grow by while hundreds of requests are refused: its allocator's slack, and never a request's size.
MAX_GROWTH_KIB = 32 * 1024
# What would tell a stranger how the server is built: paths, addresses, tracebacks, names of classes and of their packages.
TELLTALE = re.compile(
    r"(?:/(?:usr|home|root|tmp|var|opt|work|proc|dev)/|0x[0-9a-f]{5,}|Traceback|\bline \d+, in\b|\.py\b|site-packages"
    r"|\b[A-Z]\w*(?:Error|Exception)\b|<class|object at|\.sock\b"
    r"|\b(?:msgspec|starlette|uvicorn|pydantic|torch|hiredis|protobuf)\b)"
)
TYPES = {"invalid_request_error", "permission_error", "rate_limit_error", "server_error", "timeout_error"}


def check_error(body: bytes) -> dict[str, str | None]:
    """OpenAI's error object out of `body`, which holds nothing else and tells nothing about the server."""
    (error,) = json.loads(body).values()
    assert set(error) == {"message", "type", "param", "code"}, body
    assert isinstance(error["message"], str)
    assert error["type"] in TYPES
    assert all(error[name] is None or isinstance(error[name], str) for name in ("param", "code"))
    assert not TELLTALE.search(body.decode()), body
    assert len(body) < 1500
    return dict(error)


def refusal(path: str) -> int:
    """The status of what is wrong with a body: TGI's clients know another one than everybody else's."""
    return 422 if path == "/" or path.startswith("/generate") else 400


def check_answer(path: str, body: bytes) -> str | None:
    """An error in the shape of the path's dialect, which tells nothing about the server. `param`, where there is one."""
    value = json.loads(body)
    if path.startswith("/v1/messages"):
        assert value["type"] == "error"
        assert isinstance(value["error"]["type"] + value["error"]["message"], str)
    elif path.startswith(("/api/", "/generate")) or path == "/":
        assert isinstance(value["error"], str)
    else:
        return check_error(body)["param"] or ""
    assert not TELLTALE.search(body.decode()), body
    assert len(body) < 1500
    return None


@dataclass
class Patient:
    """A stack, a client of its HTTP port, and how it was before anything was done to it."""

    stack: Stack
    http: httpx.AsyncClient
    boot_id: str = ""
    pids: dict[str, int] = field(default_factory=dict)
    kib: dict[str, int] = field(default_factory=dict)
    wire: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def status(self) -> worker_pb2.StatusReply:
        """The worker's own words."""
        (socket,) = self.stack.sockets("worker")
        async with connect(f"unix:{socket}") as channel:
            reply: worker_pb2.StatusReply = await worker_pb2_grpc.WorkerStub(channel).Status(
                worker_pb2.StatusRequest(), timeout=20
            )
            return reply

    async def note(self) -> None:
        """What is compared later."""
        for _ in range(3):
            await self.canary()
        self.boot_id = (await self.status()).boot_id
        self.pids = self.stack.children()
        self.kib = resident(self.pids)

    async def canary(self) -> None:
        """A request of someone else's, which must give the tokens it always gives."""
        status, answer = await self.post("/v1/completions", CANARY)
        assert status == 200, answer
        assert json.loads(answer)["choices"][0]["text"] == canary_text()

    async def examine(self) -> None:
        """Fails unless all is as it was."""
        await self.canary()
        assert (await self.status()).boot_id == self.boot_id
        assert self.stack.children() == self.pids
        grown = {name: kib - self.kib[name] for name, kib in resident(self.pids).items()}
        assert max(grown.values()) < MAX_GROWTH_KIB, grown

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, bytes]:
        """Status and body; `body` may be bytes. Over one kept connection, and with little else: thousands are sent."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        if self.wire is None:
            self.wire = await asyncio.open_connection("127.0.0.1", self.stack.port)
        reader, writer = self.wire
        lines = [f"POST {path} HTTP/1.1", "host: localhost", f"content-length: {len(content)}"]
        lines += [f"{name}: {value}" for name, value in ({"content-type": "application/json"} | headers).items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + content)
        async with asyncio.timeout(60):
            top = (await reader.readuntil(b"\r\n\r\n")).lower()
            if b"transfer-encoding: chunked" in top:
                answer = await reader.readuntil(b"\r\n0\r\n\r\n")
            else:
                answer = await reader.readexactly(int(top.split(b"content-length: ")[1].split(b"\r\n")[0]))
        if b"connection: close" in top:
            self.hang_up()
        return int(top.split(b" ")[1]), answer

    def hang_up(self) -> None:
        """Ends the kept connection."""
        if self.wire is not None:
            self.wire[1].close()
            self.wire = None

    async def raw(self, data: bytes, timeout_s: float = 20) -> bytes:
        """All that the HTTP port says to `data` until it closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.stack.port)
        try:
            writer.write(data)
            return await asyncio.wait_for(reader.read(-1), timeout_s)
        finally:
            writer.close()


@cache
def canary_text() -> str:
    """What it must answer."""
    return text_of(expected_tokens(SPEC, CANARY["prompt"], CANARY_SAMPLING, 0)[0])


def resident(pids: dict[str, int]) -> dict[str, int]:
    """Resident memory of each process in KiB."""
    pattern = re.compile(r"VmRSS:\s+(\d+)")
    found = {name: pattern.search(Path(f"/proc/{pid}/status").read_text()) for name, pid in pids.items()}
    return {name: int(match[1]) for name, match in found.items() if match}


@contextlib.asynccontextmanager
async def patient_of(stack: Stack) -> AsyncIterator[Patient]:
    """Examined at the end, too."""
    async with httpx.AsyncClient(base_url=stack.url, timeout=60) as http:
        patient = Patient(stack, http)
        await patient.note()
        try:
            yield patient
            await patient.examine()
        finally:
            patient.hang_up()
