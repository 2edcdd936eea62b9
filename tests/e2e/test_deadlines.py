"""A request's deadline holds wherever the request is: in the queue, in prefill, in decode; over HTTP and over gRPC."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest

from shared.pb import router_pb2, router_pb2_grpc, types_pb2, worker_pb2, worker_pb2_grpc
from tests import stack
from tests.e2e.sse_client import Seen, read

SEATS = 2
DEADLINE_MS = 700
# Until the client hears of it, and until its blocks are free.
LATE_S = 1.0


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Stack]:
    """One worker with two seats that takes seconds to read a long prompt."""
    flags = ("--runner", "sim", "--max-num-seqs", str(SEATS), "--worker.sim-step-ms", "20")
    running = stack.start(tmp_path_factory.mktemp("deadlines"), *flags, "--worker.sim-prefill-tokens-per-s", "1000")
    yield running
    assert running.stop() == 0, running.log.read_text()[-3000:]


def body_of(where: str) -> dict[str, Any]:
    """What is at its deadline where it shall be."""
    prompt = [7] * (6000 if where == "prefill" else 20)
    return {"model": "default", "prompt": prompt, "max_tokens": 1500, "seed": 1, "ignore_eos": True}


async def status_of(system: stack.Stack) -> worker_pb2.StatusReply:
    async with grpc.aio.insecure_channel(f"unix:{system.sockets('worker')[0]}") as channel:
        return await worker_pb2_grpc.WorkerStub(channel).Status(worker_pb2.StatusRequest(), timeout=10)


async def until_running(system: stack.Stack, num: int) -> None:
    async with asyncio.timeout(20):
        while (await status_of(system)).num_running != num:
            await asyncio.sleep(0.02)


async def over_http(system: stack.Stack, body: dict[str, Any], *, streamed: bool) -> tuple[str, int]:
    """The error's code, and how many texts came before it."""
    headers = {"x-roadtrain-deadline-ms": str(DEADLINE_MS)}
    async with httpx.AsyncClient(base_url=system.url, timeout=60) as client:
        if streamed:
            seen = Seen(body, headers=headers)
            await read(client, seen)
            assert seen.error is not None
            assert not seen.done
            return seen.error["code"], len(seen.times)
        response = await client.post("/v1/completions", json=body, headers=headers)
        assert response.status_code == 504
        return response.json()["error"]["code"], 0


async def over_grpc(system: stack.Stack, body: dict[str, Any], *, in_message: bool) -> tuple[str, int]:
    """The same; the deadline in the message, or the call's own."""
    options = router_pb2.Options(sampling=types_pb2.Sampling(seed=1, max_tokens=body["max_tokens"], ignore_eos=True))
    if in_message:
        options.deadline_ms = DEADLINE_MS
    packed = b"".join(token.to_bytes(4, "little") for token in body["prompt"])
    request = router_pb2.CompleteRequest(model="default", token_ids=packed, options=options)
    num_texts = 0
    async with grpc.aio.insecure_channel(system.grpc_address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        timeout = 60 if in_message else DEADLINE_MS / 1000
        try:
            async for event in router_pb2_grpc.RouterStub(channel).Complete(request, timeout=timeout):
                num_texts += bool(event.delta.text)
        except grpc.aio.AioRpcError as error:
            return error.code().name.lower(), num_texts
    raise AssertionError("it ended well")


@pytest.mark.parametrize("where", ["queue", "prefill", "decode"])
@pytest.mark.parametrize("door", ["http whole", "http streamed", "grpc message", "grpc call"])
async def test_it_ends_in_time(system: stack.Stack, where: str, door: str) -> None:
    await until_running(system, 0)
    body = body_of(where)
    async with httpx.AsyncClient(base_url=system.url, timeout=60) as client:
        others = [Seen(body_of("decode") | {"seed": index}) for index in range(SEATS if where == "queue" else 0)]
        reading = [asyncio.create_task(read(client, seen)) for seen in others]
        await until_running(system, len(others))
        began_at = time.monotonic()
        if door.startswith("http"):
            code, num_texts = await over_http(system, body, streamed=door.endswith("streamed"))
        else:
            code, num_texts = await over_grpc(system, body, in_message=door.endswith("message"))
        took_s = time.monotonic() - began_at
        print(f"{where}, {door}: {took_s:.2f} s")
        assert code == "deadline_exceeded"
        assert DEADLINE_MS / 1000 - 0.1 < took_s < DEADLINE_MS / 1000 + LATE_S
        assert (num_texts > 0) == (where == "decode" and door != "http whole")
        freed_by = time.monotonic() + LATE_S
        while where != "queue" and (status := await status_of(system)).num_free_blocks != status.num_blocks:
            assert time.monotonic() < freed_by, status
            await asyncio.sleep(0.02)
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
    await until_running(system, 0)
