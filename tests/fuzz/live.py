"""Spoilt requests to a running system, over HTTP, gRPC and the queue: its processes stay the same, and so does their memory.

It knows how to spoil bytes and whom to send them, and nothing of what is answered beyond that it is no fault of ours.
"""

import asyncio
import random
import tempfile
import time
from pathlib import Path

from google.protobuf.message import DecodeError

from shared import rpc
from shared.pb import types_pb2
from tests import stack
from tests.fuzz import seeds
from tests.security.patient import FLAGS, TELLTALE, Patient, check_error, patient_of
from tests.security.queue_door import QueueDoor, queue_door
from tests.security.test_protobuf_extremes import ALLOWED, outcome

ROUND = 40
# A reader or a queue of someone else's fault is told so; a 5xx would be our own.
FINE = {200, 400, 404, 413, 415, 431}


def spoilt(rng: random.Random, data: bytes) -> bytes:
    """`data` with some places changed, cut, doubled or filled with noise."""
    spoiled = bytearray(data)
    for _ in range(rng.randrange(4)):
        at, length = rng.randrange(len(spoiled) + 1), rng.randrange(12)
        match rng.randrange(5):
            case 0:
                spoiled[at : at + length] = rng.randbytes(length)
            case 1:
                del spoiled[at : at + length]
            case 2:
                spoiled[at:at] = spoiled[at : at + length] * rng.randrange(1, 60)
            case 3:
                spoiled[at : at + length] = rng.choice(
                    (b"null", b"-1", b'""', b"[]", b"{}", b"1e999", b"\xff", b"99999999999999999999")
                )
            case _:
                spoiled[at:at] = rng.choice(seeds.text_seeds())
    return bytes(spoiled)


async def attack(patient: Patient, seconds: float, seed: int) -> int:
    """How many spoilt requests were sent. Fails where an answer is our fault, or a process is not what it was."""
    rng, num_sent, end = random.Random(seed), 0, time.monotonic() + seconds
    bodies, messages, payloads = seeds.json_seeds(), seeds.door_seeds(), seeds.payload_seeds()
    async with rpc.connect(patient.stack.grpc_address) as channel, queue_door(patient.stack) as door:
        while not num_sent or time.monotonic() < end:
            for _ in range(ROUND):
                data = spoilt(rng, rng.choice(bodies))
                status, answer = await patient.post(rng.choice(("/v1/completions", "/v1/chat/completions")), data)
                if status not in FINE:
                    raise AssertionError(f"{status} for {data!r}: {answer!r}")
                if status != 200:
                    check_error(answer)
            for _ in range(ROUND // 4):
                data = spoilt(rng, rng.choice(messages))
                name, details = await outcome(
                    channel.unary_stream(rng.choice(("/roadtrain.Router/Chat", "/roadtrain.Router/Complete")))(data)
                )
                if name not in ALLOWED or TELLTALE.search(details):
                    raise AssertionError(f"{name} for {data!r}: {details}")
            await asyncio.gather(*(_queued(door, spoilt(rng, rng.choice(payloads))) for _ in range(ROUND // 8)))
            num_sent += ROUND + ROUND // 4 + ROUND // 8
            await patient.examine()
    return num_sent


async def _queued(door: QueueDoor, data: bytes) -> None:
    """A payload of these fields, signed, to its end."""
    payload = types_pb2.Payload()
    try:
        payload.ParseFromString(data)
    except DecodeError:
        return
    owed = await door.put(types_pb2.Sampling(), [1], lambda made: made.CopyFrom(payload))
    async with asyncio.timeout(60):
        while not owed.whole and (await door.queue.read([owed.rid]))[owed.rid].state not in ("dead", "done"):  # type: ignore[union-attr]
            await asyncio.sleep(0.005)


async def run(seconds: float, seed: int) -> int:
    """A system of its own, attacked for so long."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        running = stack.start(Path(folder), *FLAGS)
        try:
            async with patient_of(running) as patient:
                return await attack(patient, seconds, seed)
        finally:
            running.stop()
