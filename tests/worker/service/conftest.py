"""A whole worker on the sim runner, a real redis-server, and a scripted router, for the service's tests."""

import contextlib
import tempfile
from array import array
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from services.worker.__main__ import Built, Worker, start
from services.worker.sim import SimRunner, SimSpec, expected_tokens
from shared.config import Settings, WorkerConfig
from shared.pb import types_pb2
from shared.queue.client import Queue
from shared.queue.connection import connect
from shared.queue.payload import digest, seal
from shared.queue.registry import Registry, RouterFacts
from shared.queue.types import Known, NewRequest, Record
from shared.sampling import SamplingParams, to_proto
from tests.redis_server import RedisServer, redis_server
from tests.worker.service.router_double import Owed, RouterDouble

KEY = b"k" * 64
SPEC = SimSpec(num_blocks=512, max_model_len=2048, vocab_size=1000, step_ms=1.0)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@dataclass
class Plane:
    """What a test drives: the queue as a router sees it, routers, and workers it starts."""

    folder: Path
    url: str
    queue: Queue
    registry: Registry
    stack: contextlib.AsyncExitStack
    routers: list[RouterDouble] = field(default_factory=list)
    num_requests: int = 0

    async def router(self, router_id: str = "r0") -> RouterDouble:
        router = RouterDouble(self.folder, router_id)
        await router.start()
        self.stack.push_async_callback(router.stop)
        await self.registry.announce_router(RouterFacts(router_id, "boot", router.address))
        self.routers.append(router)
        return router

    async def worker(self, worker_id: str = "w0", spec: SimSpec = SPEC, runner: SimRunner | None = None, **config: Any) -> Worker:
        address = f"unix:{self.folder}/{worker_id}.admin"
        worker = WorkerConfig(worker_id=worker_id, admin_address=address, runner="sim", **config)
        settings = Settings(model="test", redis_url=self.url, secret_file=self.folder / "secret", worker=worker)
        return await self.stack.enter_async_context(start(settings, Built(runner or SimRunner(spec))))

    async def put(
        self,
        router: RouterDouble,
        params: SamplingParams,
        prompt: list[int],
        change: Callable[[types_pb2.Payload], None] | None = None,
        keys: tuple[bytes, ...] = (KEY,),
        known: Known | None = None,
        **flags: Any,
    ) -> Owed:
        self.num_requests += 1
        rid = f"00{self.num_requests:032x}"
        payload = types_pb2.Payload(kind=types_pb2.KIND_GENERATE, sampling=to_proto(params), cache_salt=b"t")
        payload.prompt_token_ids = array("I", prompt).tobytes()
        if change is not None:
            change(payload)
        owed = router.owe(rid, params.n, **flags)
        sealed = seal(payload, rid, keys)
        request = NewRequest(rid, router.router_id, "tenant", sealed, digest(payload), len(prompt) + (params.max_tokens or 0))
        await self.queue.put(request, attach=1 if known else None, known=known)
        return owed

    async def record(self, owed: Owed) -> Record:
        record = (await self.queue.read([owed.rid]))[owed.rid]
        assert record is not None
        return record


@pytest.fixture
async def plane(server: RedisServer) -> AsyncIterator[Plane]:
    redis = connect(server.url)
    await redis.flushall()
    with tempfile.TemporaryDirectory(prefix="rt-") as folder:
        (Path(folder) / "secret").write_bytes(KEY + b"\n")
        queue = Queue(redis, model="test")
        await queue.load()
        async with contextlib.AsyncExitStack() as stack:
            plane = Plane(Path(folder), server.url, queue, Registry(redis), stack)
            yield plane
        assert not [fault for router in plane.routers for fault in router.faults]
    await redis.aclose()


def params(**changes: Any) -> SamplingParams:
    return SamplingParams(**{"seed": 1, "max_tokens": 40, **changes})


def answer(prompt: list[int], sampling: SamplingParams, choice: int = 0, spec: SimSpec = SPEC) -> list[int]:
    """The tokens a request must yield."""
    return expected_tokens(spec, prompt, sampling, choice)[0]
