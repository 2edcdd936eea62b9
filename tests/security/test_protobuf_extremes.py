"""Each field of each message of the public gRPC door at its extremes, and noise to every port that speaks gRPC.

Every answer is an error, and nobody else notices. It knows the services, and nothing of what they do.
"""

import random
from itertools import groupby
from operator import itemgetter
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass

from shared import rpc
from shared.pb import delivery_pb2, router_pb2, router_pb2_grpc, tokenizer_pb2, types_pb2, worker_pb2
from tests.garbled import NOISE
from tests.security.patient import CANARY, TELLTALE, Patient, canary_text
from tests.security.protos import extremes

FEW = router_pb2.Options(sampling=types_pb2.Sampling(max_tokens=1))
CHAT = router_pb2.ChatRequest(
    model="default", chat=tokenizer_pb2.Chat(messages=[tokenizer_pb2.ChatMessage(role="user", content="hi")]), options=FEW
)
MESSAGES = {
    "Chat": CHAT,
    "Complete": router_pb2.CompleteRequest(model="default", text="hi", options=FEW),
    "Resume": router_pb2.ResumeRequest(rid="00" + "ab" * 16),
    "Cancel": router_pb2.CancelRequest(rid="00" + "ab" * 16),
}
# The caller's fault, or its own deadline; never ours.
ALLOWED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}


async def outcome(call: Any) -> tuple[str, str]:
    """Status and details of a call, whatever its kind."""
    try:
        if hasattr(call, "read"):
            while await call.read() is not grpc.aio.EOF:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    return "OK", ""


async def grpc_canary(stub: Any) -> None:
    packed = b"".join(token_id.to_bytes(4, "little") for token_id in CANARY["prompt"])
    sampling = types_pb2.Sampling(max_tokens=CANARY["max_tokens"], seed=CANARY["seed"], ignore_eos=True)
    asked = router_pb2.CompleteRequest(model="default", token_ids=packed, options=router_pb2.Options(sampling=sampling))
    text = "".join([event.delta.text async for event in stub.Complete(asked)])
    assert text == canary_text()


@pytest.mark.parametrize("method", MESSAGES)
async def test_sec_26_sweep_over_grpc(patient: Patient, method: str) -> None:
    async with rpc.connect(patient.stack.grpc_address) as channel:
        stub = router_pb2_grpc.RouterStub(channel)
        for where, group in groupby(extremes(MESSAGES[method]), itemgetter(0)):
            for _, message in group:
                status, details = await outcome(getattr(stub, method)(message, timeout=60))
                assert status in ALLOWED, (where, str(message)[:300], status, details)
                assert len(details) < 1000
            await grpc_canary(stub)


def services_of(patient: Patient) -> list[tuple[str, Any]]:
    """(address, service) of every port that speaks gRPC."""
    (worker,), (tokenizer,), (deliver,) = (patient.stack.sockets(role) for role in ("worker", "tokenizer", "deliver"))
    return [
        (patient.stack.grpc_address, router_pb2.DESCRIPTOR.services_by_name["Router"]),
        (f"unix:{tokenizer}", tokenizer_pb2.DESCRIPTOR.services_by_name["Tokenizer"]),
        (f"unix:{deliver}", delivery_pb2.DESCRIPTOR.services_by_name["Delivery"]),
        (f"unix:{worker}", worker_pb2.DESCRIPTOR.services_by_name["Worker"]),
    ]


def noises(rng: random.Random, whole: bytes) -> list[bytes]:
    """No message; a message cut off; one with bytes changed; any bytes."""
    spoiled = bytearray(whole)
    for _ in range(3):
        if spoiled:
            spoiled[rng.randrange(len(spoiled))] = rng.randrange(256)
    return [NOISE, whole[: len(whole) // 2], bytes(spoiled), rng.randbytes(rng.randrange(1, 200)), b"\x0a" * 4000]


async def send(channel: grpc.aio.Channel, path: str, method: Any, data: bytes) -> tuple[str, str]:
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    call = getattr(channel, kind)(path)
    if not method.client_streaming:
        return await outcome(call(data, timeout=30))
    opened = call(timeout=30)
    await opened.write(data)
    await opened.done_writing()
    return await outcome(opened)


async def test_sec_31_noise_to_every_call_of_every_service(patient: Patient) -> None:
    rng = random.Random(31)
    num_sent = 0
    for address, service in services_of(patient):
        async with rpc.connect(address) as channel:
            for method in service.methods:
                # A drain that happened to be well-formed would be obeyed.
                if method.name == "Drain":
                    continue
                whole = next((each.SerializeToString() for _, each in extremes(GetMessageClass(method.input_type)())), b"")
                for data in noises(rng, whole + b"\x0a\x03abc"):
                    status, details = await send(channel, f"/{service.full_name}/{method.name}", method, data)
                    num_sent += 1
                    assert status in ALLOWED, (method.full_name, data, status, details)
                    assert not TELLTALE.search(details)
                await patient.canary()
            status, _ = await outcome(channel.unary_unary(f"/{service.full_name}/Nothing")(b"", timeout=30))
            assert status == "UNIMPLEMENTED"
    assert num_sent > 50
    await patient.examine()


async def test_there_is_no_reflection(patient: Patient) -> None:
    for address, _ in services_of(patient):
        async with rpc.connect(address) as channel:
            for version in ("v1", "v1alpha"):
                path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
                opened = channel.stream_stream(path)(timeout=30)
                await opened.done_writing()
                assert (await outcome(opened))[0] == "UNIMPLEMENTED"
