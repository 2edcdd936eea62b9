"""A plane with everything around it for real: redis-server, tokenizers on gRPC, sim workers that dial in; one process.

What breaks in a test is broken here: a tokenizer stops, a worker falls silent, Redis is killed. It knows no assertions.
"""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from services.launcher.pull import find_or_fetch
from services.router.auth import Identity
from services.router.generate import ChoiceEnd, Event, GenerateRequest, Generation, TextDelta
from services.router.plane import Plane, open_plane
from services.tokenizer import vocab
from services.tokenizer.chat import ChatEncoder
from services.tokenizer.server import Grammars, TokenizerServicer
from services.worker.consumer import Consumer
from services.worker.engine.engine import Engine, EngineLimits
from services.worker.sim import SimRunner, SimSpec
from shared import rpc
from shared.config import RouterConfig, Settings, model_name
from shared.pb import tokenizer_pb2_grpc
from shared.queue.client import Queue
from shared.queue.connection import connect
from shared.queue.keys import new_key, read_keys
from shared.queue.registry import Registry, WorkerFacts
from shared.queue.types import Owner, Timings
from tests.redis_server import RedisServer, launch

MODEL = "smollm2"
SPEC = SimSpec(num_blocks=1024, max_model_len=2048, vocab_size=49152, step_ms=2.0)


@cache
def vocabulary() -> vocab.Vocabulary:
    """SmolLM2's, from the file that the default model is."""
    return vocab.load(find_or_fetch(MODEL))


def text_of(token_ids: list[int]) -> str:
    """What the tokens spell, special ones left out."""
    table, special = vocabulary().token_bytes, vocabulary().special_ids
    return b"".join(table[token_id] for token_id in token_ids if token_id not in special).decode(errors="replace")


@dataclass
class SimWorker:
    """One worker process's insides, on this event loop."""

    engine: Engine
    consumer: Consumer
    registry: Registry
    facts: WorkerFacts
    redis: Any

    @classmethod
    async def start(cls, rig: "Rig", worker_id: str, spec: SimSpec) -> "SimWorker":
        redis = connect(rig.redis.url)
        queue = Queue(redis, model=model_name(MODEL), timings=Timings(lease_ms=1500))
        await queue.load()
        registry = Registry(redis)
        runner = SimRunner(spec)
        owner = Owner(worker_id, f"boot{len(rig.workers)}")
        consumer = Consumer(queue, registry, owner, rig.keys, runner.limits, on_fatal=rig.fatal.append)
        limits = EngineLimits(max_num_seqs=64, max_step_tokens=512)
        engine = Engine(
            runner, limits, on_step=consumer.on_step, on_tick=consumer.on_tick, on_fatal=rig.fatal.append, tick_s=0.05
        )
        model = {"model": model_name(MODEL), "max_model_len": spec.max_model_len, "vocab_size": spec.vocab_size}
        kinds = {"kinds": runner.limits.kinds, "vector_size": runner.limits.vector_size, "pooling": runner.limits.pooling}
        facts = WorkerFacts(worker_id, owner.boot_id, {**model, **kinds, "fingerprint": runner.limits.fingerprint})
        await registry.announce_worker(facts)
        engine.start()
        consumer.start(engine)
        worker = cls(engine, consumer, registry, facts, redis)
        rig.workers.append(worker)
        return worker

    async def kill(self) -> None:
        """Gone without a word: streams break, leases stay."""
        # Between two calls to Redis: redis-py loses a connection whose release a cancel meets.
        pool = self.redis.connection_pool
        deadline, quiet = time.monotonic() + 1, 0
        while quiet < 5 and time.monotonic() < deadline:
            await asyncio.sleep(0.001)
            quiet = quiet + 1 if len(pool._in_use_connections) <= 1 else 0
        # Consumer first: it must say nothing of what the engine ends.
        await self.consumer.close()
        await asyncio.to_thread(self.engine.stop)
        await self.redis.aclose()


@dataclass
class Rig:
    """Everything around one plane."""

    redis: RedisServer
    keys: tuple[bytes, ...]
    folder: Path
    spec: SimSpec = SPEC
    tokenizers: list[rpc.Server] = field(default_factory=list)
    workers: list[SimWorker] = field(default_factory=list)
    fatal: list[BaseException] = field(default_factory=list)

    def settings(self, name: str = "r0", **router: Any) -> Settings:
        """Of one router."""
        addresses = tuple(server.address for server in self.tokenizers)
        config = RouterConfig(
            router_id=name, deliver_address=f"unix:{self.folder}/{name}", tokenizer_addresses=addresses, **router
        )
        return Settings(model=MODEL, redis_url=self.redis.url, secret_file=self.folder / "secret", router=config)

    async def add_tokenizer(self) -> rpc.Server:
        """One more replica."""
        threads = ThreadPoolExecutor(1)
        grammars = Grammars.of(vocabulary(), 1)
        servicer = TokenizerServicer(vocabulary(), ChatEncoder(vocabulary(), _no_templates), threads, grammars)
        address = f"unix:{self.folder}/t{len(self.tokenizers)}"
        server = await rpc.serve(address, [(tokenizer_pb2_grpc.add_TokenizerServicer_to_server, servicer)])
        self.tokenizers.append(server)
        return server


def _no_templates(*_: object) -> str:
    raise AssertionError("these tests send no chats")


@asynccontextmanager
async def rig(*, num_tokenizers: int = 1, num_workers: int = 1, spec: SimSpec = SPEC) -> AsyncIterator[Rig]:
    """Redis, tokenizers and workers; everything is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="rt-") as name:
        folder = Path(name)
        (folder / "secret").write_text(new_key())
        made = Rig(launch(folder / "redis.sock"), read_keys(folder / "secret"), folder, spec)
        async with AsyncExitStack() as stack:
            stack.callback(made.redis.stop)
            for _ in range(num_tokenizers):
                await made.add_tokenizer()
            for number in range(num_workers):
                await SimWorker.start(made, f"w{number}", spec)
            try:
                yield made
            finally:
                for worker in made.workers:
                    await worker.kill()
                for server in made.tokenizers:
                    await server.stop(0)
        if made.fatal:
            raise made.fatal[0]


@asynccontextmanager
async def plane_of(made: Rig, name: str = "r0", **router: Any) -> AsyncIterator[Plane]:
    """A router's plane, ready."""
    plane = await open_plane(made.settings(name, **router))
    try:
        async with asyncio.timeout(10):
            while plane.not_ready():
                await asyncio.sleep(0.01)
        yield plane
    finally:
        await plane.close()


@dataclass
class Heard:
    """What a client got of one choice."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    end: ChoiceEnd | None = None
    positions: list[str] = field(default_factory=list)


async def listen(generation: Generation, num_choices: int = 1) -> list[Heard]:
    """Everything, to the end."""
    heard = [Heard() for _ in range(num_choices)]
    async for events in generation.events():
        for event in events:
            take(heard, event)
    return heard


def take(heard: list[Heard], event: Event) -> None:
    """Adds one event."""
    choice = heard[event.choice]
    choice.positions.append(event.position)
    if isinstance(event, TextDelta):
        choice.text += event.text
        choice.token_ids += event.token_ids
        assert event.num_tokens == len(choice.token_ids)
    else:
        assert choice.end is None
        choice.end = event


def ask(**fields: Any) -> GenerateRequest:
    """A request with defaults."""
    defaults = {"model": "default", "identity": Identity(fields.pop("tenant", "t")), "prompt": "Once upon a time"}
    return GenerateRequest(**{**defaults, **fields})
