"""A worker process: builds the runner, starts engine, consumer and admin port, and drains when told to end.

torch is imported only to run a model. It knows how the parts fit together, and nothing of what they do.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from services.worker.consumer import Consumer
from services.worker.engine.engine import Engine, EngineLimits
from services.worker.engine.step import BLOCK_SIZE, Runner
from services.worker.server import Admin
from services.worker.sim import SimRunner, SimSpec
from services.worker.watchdog import Watchdog
from shared.config import Settings, WorkerConfig, cache_dir
from shared.config import load as load_settings
from shared.errors import StartupError, Unavailable
from shared.imports import hollow
from shared.logs import configure_logging
from shared.marks import Marks
from shared.mtls import read_papers
from shared.pb import worker_pb2_grpc
from shared.process import settle
from shared.queue.address import without_password
from shared.queue.client import Queue
from shared.queue.connection import connect_as
from shared.queue.keys import read_keys
from shared.queue.registry import ANNOUNCE_EVERY_S, Registry, WorkerFacts
from shared.queue.types import Owner
from shared.rpc import Server, serve
from shared.vocabulary.files import read_tokens

if TYPE_CHECKING:
    from kernels import Ops
    from services.worker.models import EncoderModel, Model

EXIT_STUCK = 70
SEEN_EVERY_S = 1.0
STALL_FACTOR = 10
SWITCH_INTERVAL_S = 0.0005
REDIS_PATIENCE_S = 5.0
REDIS_POLL_S = 0.02
PROGRESS_EVERY_S = 1.0

logger = logging.getLogger(__name__)


def run(settings: Settings, marks: Marks | None = None) -> None:
    """Runs a worker until SIGTERM or SIGINT has drained it; exits 70 if the engine fails or is stuck."""
    marks = marks or Marks()
    # The engine thread holds the interpreter in long stretches; the event loop must not wait 5 ms for its turn.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # A thread of its own: the compute threads that loading starts end with it.
    with ThreadPoolExecutor(1) as loading:
        built = loading.submit(build_runner, settings, marks).result()
    if uvloop.run(_run(settings, built, marks)):
        # The engine thread may never return, and must not hold up the exit.
        logging.shutdown()
        os._exit(EXIT_STUCK)


@dataclass(frozen=True, slots=True)
class Built:
    """A runner, and about how long its longest step takes on this machine, seconds."""

    runner: Runner
    step_s: float = 0.0


def build_runner(settings: Settings, marks: Marks) -> Built:
    """The runner that `settings` ask for. Raises StartupError."""
    return Built(_sim_runner(settings.worker)) if settings.worker.runner == "sim" else _model_runner(settings, marks)


def _sim_runner(config: WorkerConfig) -> Runner:
    spec = SimSpec(
        num_blocks=config.sim_num_blocks,
        # No more than fits: what does not is refused at the door, not here.
        max_model_len=min(config.max_model_len or 8192, config.sim_num_blocks * BLOCK_SIZE),
        vocab_size=config.sim_vocab_size,
        step_ms=config.sim_step_ms,
        row_ms=config.sim_step_ms_per_seq,
        prefill_tokens_per_s=config.sim_prefill_tokens_per_s,
        poison_token=config.sim_poison_token,
    )
    return SimRunner(spec)


def _model_runner(settings: Settings, marks: Marks) -> Built:
    # Python versions of all operators for tensors without data, which nobody here makes: a third of torch's start, 18 MB.
    with hollow("torch._meta_registrations"):
        import torch  # noqa: F401
    from kernels import load
    from services.worker.models import is_encoder

    config, path = settings.worker, settings.model_path
    if path is None:
        raise StartupError("a worker needs the model's files: set model_path")
    marks("torch")
    ops = load(config.device, cache_dir() / "kernels")
    marks("kernels")
    return (_encoder if is_encoder(path) else _decoder)(config, path, ops, marks)


def _encoder(config: WorkerConfig, path: Path, ops: "Ops", marks: Marks) -> Built:
    from services.worker.models import build_encoder
    from services.worker.runtime.encoder_runner import EncoderRunner, probe

    started_at = time.monotonic()
    model = build_encoder(path, ops, _progress(str(path)), config.max_model_len)
    _log_weights(model, started_at)
    marks("weights")
    runner = EncoderRunner(model, max_num_seqs=config.max_num_seqs, num_threads=config.num_threads)
    step_s = probe(runner, config.max_step_tokens)
    logger.info(f"a step of {config.max_step_tokens} tokens takes about {step_s:.2f} s")
    marks("probe")
    return Built(runner, step_s)


def _decoder(config: WorkerConfig, path: Path, ops: "Ops", marks: Marks) -> Built:
    from services.worker.models import build
    from services.worker.runtime.kv_cache import plan
    from services.worker.runtime.runner import KV_DTYPE, ModelRunner, probe, shape_of

    started_at = time.monotonic()
    model = build(path, ops, _progress(str(path)), config.max_model_len, config.compute, cache_dir() / "repacked")
    if model.compute != config.compute:
        logger.warning(f"compute is {model.compute}: there are no {config.compute} kernels for this processor and model")
    _log_weights(model, started_at)
    marks("weights")
    kv_dtype = config.kv_dtype or KV_DTYPE[model.compute]
    kv = plan(shape_of(model, kv_dtype), config.kv_memory, model.max_model_len)
    logger.info(kv.arithmetic)
    runner = ModelRunner(
        model,
        num_blocks=kv.num_blocks,
        kv_dtype=kv_dtype,
        max_num_seqs=config.max_num_seqs,
        max_step_tokens=config.max_step_tokens,
        num_threads=config.num_threads,
        device=config.device,
        read_tokens=lambda: read_tokens(path),
    )
    marks("KV cache")
    step_s = probe(runner, config.max_step_tokens)
    logger.info(f"a step of {config.max_step_tokens} tokens takes about {step_s:.2f} s")
    marks("probe")
    return Built(runner, step_s)


def _log_weights(model: "Model | EncoderModel", started_at: float) -> None:
    formats, took_s = "+".join(model.formats), time.monotonic() - started_at
    logger.info(f"weights loaded: {model.num_bytes / 2**20:.0f} MiB, {formats}, in {took_s:.1f} s")


def _progress(name: str) -> Callable[[int, int], None]:
    """Logs how far loading is, at most once a second."""
    started_at = told_at = time.monotonic()

    def progress(num_read: int, num_bytes: int) -> None:
        nonlocal told_at
        now = time.monotonic()
        if now - told_at >= PROGRESS_EVERY_S:
            told_at = now
            read = f"{num_read / 2**20:.0f} of {num_bytes / 2**20:.0f} MiB ({100 * num_read / max(1, num_bytes):.0f} %)"
            logger.info(f"loading {name}: {read} in {now - started_at:.0f} s")

    return progress


class Worker:
    """A worker that runs in this event loop. Made by `start`; end it with `close`."""

    def __init__(self, settings: Settings, built: Built, queue: Queue, registry: Registry, keys: tuple[bytes, ...]):
        config, runner = settings.worker, built.runner
        self.owner = Owner(config.worker_id or socket.gethostname(), secrets.token_hex(8))
        self.ended = asyncio.Event()
        self.failed = False
        self.limits = runner.limits
        self._settings = settings
        self._queue = queue
        self._registry = registry
        self._loop = asyncio.get_running_loop()
        self._papers = papers = read_papers(settings.certs_dir, "worker")
        peer = papers.peer("router") if papers else None
        self.consumer = Consumer(
            queue, registry, self.owner, keys, runner.limits, on_fatal=self._fail, step_s=built.step_s, peer=peer
        )
        self.engine = Engine(
            runner,
            EngineLimits(config.max_num_seqs, config.max_step_tokens),
            on_step=self.consumer.on_step,
            on_tick=self.consumer.on_tick,
            on_fatal=self._engine_failed,
        )
        # Recent steps may all have been short; the longest must not look stuck after them.
        least_s = STALL_FACTOR * built.step_s
        self._watchdog = Watchdog(self.engine, lambda: max(least_s, self.engine.stats().stall_limit_s), self._stuck)
        self._server: Server
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Listens, announces itself and begins to claim. Raises StartupError."""
        admin = Admin(self.owner, self._settings.names[0], self.limits, self.engine, self.consumer, self.begin_drain)
        address = self._settings.worker.admin_address
        registration = (worker_pb2_grpc.add_WorkerServicer_to_server, admin)
        admin.server = self._server = await serve(address, [registration], setting="--worker.admin-address", guard=self._papers)
        self.engine.start()
        self._watchdog.start()
        self.consumer.start(self.engine)
        with contextlib.suppress(Unavailable):
            await self._announce()
        self._tasks = [
            asyncio.create_task(_every(ANNOUNCE_EVERY_S, self._announce)),
            asyncio.create_task(_every(SEEN_EVERY_S, lambda: self._queue.seen(self.owner))),
        ]
        settle()
        logger.info("worker is ready", extra={"owner": str(self.owner), "fingerprint": self.limits.fingerprint})

    def begin_drain(self, grace_s: float) -> None:
        """Claims nothing more, lets requests end for grace_s, hands back the rest; then `ended` is set."""
        if not self.consumer.draining:
            logger.info("draining", extra={"grace_s": grace_s, "num_requests": len(self.consumer.held)})
            self._tasks.append(asyncio.create_task(self._drain(grace_s)))

    async def close(self) -> None:
        """Ends everything that was started."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._watchdog.stop()
        if not self.failed:
            await asyncio.to_thread(self.engine.stop)
        await self.consumer.close()
        with contextlib.suppress(Unavailable):
            await self._registry.withdraw_worker(self.owner.worker_id)
        await self._server.stop(0.5)

    async def _drain(self, grace_s: float) -> None:
        await self._server.set_ready(False)
        await self.consumer.drain(grace_s)
        self.ended.set()

    async def _announce(self) -> None:
        facts = self.facts()
        await self._registry.announce_worker(WorkerFacts(self.owner.worker_id, self.owner.boot_id, facts))

    def facts(self) -> dict[str, Any]:
        """What it announces."""
        stats, limits = self.engine.stats(), self.limits
        return {
            "model": self._settings.names[0],
            "fingerprint": limits.fingerprint,
            "admin_address": self._server.address,
            "max_model_len": limits.max_model_len,
            "vocab_size": limits.vocab_size,
            "kinds": limits.kinds,
            "vector_size": limits.vector_size,
            "pooling": limits.pooling,
            "num_blocks": limits.num_blocks,
            "block_size": limits.block_size,
            "num_free_blocks": stats.free_blocks,
            "room": 0 if self.consumer.draining else stats.room,
            "num_running": stats.running,
            "num_waiting": stats.waiting,
            "draining": self.consumer.draining,
        }

    def _engine_failed(self, error: Exception) -> None:
        self._loop.call_soon_threadsafe(self._fail, error)

    def _fail(self, error: BaseException) -> None:
        logger.critical("the worker cannot go on", exc_info=error)
        self.failed = True
        self.ended.set()

    def _stuck(self, stalled_s: float) -> None:
        logger.critical("the engine is stuck; ending", extra={"stalled_s": round(stalled_s, 1)})
        logging.shutdown()
        os._exit(EXIT_STUCK)


@contextlib.asynccontextmanager
async def start(settings: Settings, built: Built) -> AsyncIterator[Worker]:
    """A running worker, closed at the end. Raises StartupError; nothing stays behind then."""
    if settings.redis_url is None or settings.secret_file is None:
        raise StartupError("a worker needs --redis-url and --secret-file")
    keys = read_keys(settings.secret_file)
    redis = connect_as(settings)
    try:
        queue = Queue(redis, model=settings.names[0], num_shards=settings.queue_shards)
        await _load(queue, settings.redis_url)
        worker = Worker(settings, built, queue, Registry(redis), keys)
        await worker.start()
        try:
            yield worker
        finally:
            await worker.close()
    finally:
        await redis.aclose()


async def _load(queue: Queue, redis_url: str) -> None:
    """Waits a little for Redis: services of one machine start together."""
    end = time.monotonic() + REDIS_PATIENCE_S
    while True:
        try:
            return await queue.load()
        except Unavailable:
            if time.monotonic() > end:
                raise StartupError(f"no Redis answers at {without_password(redis_url)}; start one, or set --redis-url") from None
        await asyncio.sleep(REDIS_POLL_S)


async def _run(settings: Settings, built: Built, marks: Marks) -> bool:
    """Serves until told to end; whether the worker failed."""
    async with start(settings, built) as worker:
        marks.ready(worker.facts())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, worker.begin_drain, settings.worker.drain_grace_s)
        await worker.ended.wait()
        return worker.failed


async def _every(period_s: float, do: Callable[[], object]) -> None:
    """Does it now and again; while Redis cannot be asked, it is tried again at the next turn."""
    while True:
        await asyncio.sleep(period_s)
        with contextlib.suppress(Unavailable):
            await do()  # type: ignore[misc]


def main() -> None:
    """`python -m services.worker`: a worker without the launcher, for settings that name the model's files."""
    try:
        settings = load_settings(sys.argv[1:], program="worker")
        configure_logging("worker", settings.log_level, settings.log_format)
        run(settings)
    except StartupError as error:
        sys.exit(f"worker: {error}")


if __name__ == "__main__":
    main()
