"""Straight onto a running system's queue, as one who can write to its Redis: signed payloads, forged ones, and who answers.

It knows the queue's client and a scripted router, and nothing of what is judged.
"""

import asyncio
import contextlib
import tempfile
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.router.generate import _salt
from shared.pb import types_pb2
from shared.queue.client import Queue
from shared.queue.connection import connect
from shared.queue.keys import read_keys
from shared.queue.payload import digest, seal
from shared.queue.registry import Registry, RouterFacts
from shared.queue.rid import new_rid
from shared.queue.types import NewRequest, Record
from tests.stack import Stack
from tests.worker.service.router_double import Owed, RouterDouble, until

MODEL = "SmolLM2-135M-Instruct"
Change = Callable[[types_pb2.Payload], None]


@dataclass
class QueueDoor:
    """The queue, and a router of one's own that workers answer to."""

    queue: Queue
    registry: Registry
    router: RouterDouble
    keys: tuple[bytes, ...]
    num_refused: int = 0

    async def put(
        self,
        sampling: types_pb2.Sampling,
        prompt: Sequence[int],
        change: Change | None = None,
        spoil: Callable[[bytes], bytes] = bytes,
    ) -> Owed:
        """A payload like a router's; `change` before it is signed, `spoil` after."""
        rid = new_rid()
        payload = types_pb2.Payload(kind=types_pb2.KIND_GENERATE, cache_salt=_salt("t", ""))
        payload.sampling.CopyFrom(sampling)
        if not sampling.HasField("seed"):
            payload.sampling.seed = 1
        if not sampling.HasField("max_tokens"):
            payload.sampling.max_tokens = 4
        payload.prompt_token_ids = array("I", prompt).tobytes()
        if change is not None:
            change(payload)
        owed = self.router.owe(rid)
        sealed = spoil(seal(payload, rid, self.keys))
        # It is known for ten seconds only.
        await self.registry.announce_router(RouterFacts(self.router.router_id, "boot", self.router.address))
        await self.queue.put(NewRequest(rid, self.router.router_id, "t", sealed, digest(payload), 10))
        return owed

    async def refused(
        self, sampling: types_pb2.Sampling | None, prompt: Sequence[int], change: Change | None = None
    ) -> types_pb2.Error:
        """What the worker says is wrong with it."""
        owed = await self.put(sampling or types_pb2.Sampling(), prompt, change)
        await until(lambda: owed.whole, owed, 30)
        self.num_refused += 1
        assert owed.finishes[0].reason == types_pb2.FINISH_REASON_ERROR, owed
        error: types_pb2.Error = owed.finishes[0].error
        return error

    async def ended(self, owed: Owed) -> Record:
        """Its record once it has ended."""
        found: list[Record] = []

        async def look() -> bool:
            record = (await self.queue.read([owed.rid]))[owed.rid]
            found[:] = [record] if record is not None and record.state not in ("queued", "running") else []
            return bool(found)

        while not await look():
            await asyncio.sleep(0.01)
        return found[0]


@contextlib.asynccontextmanager
async def queue_door(stack: Stack) -> AsyncIterator[QueueDoor]:
    """Into the private Redis of a stack, with its own signing key."""
    (home,) = stack.folder.glob("roadtrain-*/")
    redis = connect(f"unix://{home}/redis.sock")
    queue = Queue(redis, model=MODEL)
    await queue.load()
    with tempfile.TemporaryDirectory(prefix="rt-") as folder:
        router = RouterDouble(Path(folder), "attacker")
        await router.start()
        try:
            yield QueueDoor(queue, Registry(redis), router, read_keys(home / "secret"))
        finally:
            await router.stop()
            await redis.aclose()
