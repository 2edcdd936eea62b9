"""Applies a load to a server for a while: closed loop, open loop, and a long prompt that keeps coming back.

Load is kept up until every request that began inside the window has ended; what is still open then is dropped, and
counts nowhere. It knows nothing of what the numbers mean.
"""

import asyncio
import random
import resource
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from bench.wire import Answer, Raw, Target, exchange, read, request_bytes
from bench.workload import Ask

PATIENCE_S = 300.0


@dataclass(frozen=True, slots=True)
class Window:
    """How long: load for warmup_s first, then what begins within seconds counts."""

    warmup_s: float
    seconds: float


@dataclass(slots=True)
class Run:
    """What a load gave. start, end: the window, seconds of `time.perf_counter`. client_cpu: cores used by this process."""

    start: float
    end: float
    answers: list[Answer] = field(default_factory=list)
    intruders: list[Answer] | None = None
    client_cpu: float = 0.0


async def closed(target: Target, asks: Iterator[Ask], num_clients: int, window: Window, intruder: Iterator[Ask] | None) -> Run:
    """num_clients clients, each asking again as soon as it was answered."""
    load = _Load(target, window)

    async def client() -> None:
        while True:
            await load.one(next(asks))

    return await load.run([client] * num_clients, intruder)


async def open_loop(target: Target, asks: Iterator[Ask], rate: float, seed: int, window: Window) -> Run:
    """`rate` requests per second on average, at Poisson times, whether or not earlier ones were answered."""
    load = _Load(target, window)
    rng = random.Random(seed)

    async def arrivals() -> None:
        next_at = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            while True:
                next_at += rng.expovariate(rate)
                await asyncio.sleep(max(0.0, next_at - time.perf_counter()))
                tasks.create_task(load.one(next(asks)))

    return await load.run([arrivals], None)


class _Load:
    """One load while it runs."""

    def __init__(self, target: Target, window: Window):
        self._target = target
        self._window = window
        self._raws: list[Raw] = []
        self._open: set[float] = set()  # when each request that is not answered began
        self._ended = asyncio.Event()

    async def one(self, ask: Ask) -> None:
        """One request from begin to end; a server that refuses is not asked again at once."""
        request = request_bytes(self._target, ask.prompt, ask.max_tokens)
        began_at = time.perf_counter()
        self._open.add(began_at)
        raw = None
        try:
            raw = await exchange(self._target, request)
        finally:
            self._open.discard(began_at)
            self._ended.set()
        self._raws.append(raw)
        if raw.failure or not raw.parts:
            await asyncio.sleep(0.1)

    async def run(self, sources: list[Callable[[], Awaitable[None]]], intruder: Iterator[Ask] | None) -> Run:
        """Applies it."""
        long_raws: list[Raw] = []

        async def intrude() -> None:
            for ask in intruder or ():
                long_raws.append(await exchange(self._target, request_bytes(self._target, ask.prompt, ask.max_tokens)))

        tasks = [asyncio.ensure_future(source()) for source in [*sources, intrude]]
        try:
            await asyncio.sleep(self._window.warmup_s)
            start, cpu = time.perf_counter(), _cpu_s()
            await asyncio.sleep(self._window.seconds)
            end, cpu = time.perf_counter(), _cpu_s() - cpu
            while any(at < end for at in self._open) and time.perf_counter() < end + PATIENCE_S:
                self._ended.clear()
                await asyncio.wait_for(self._ended.wait(), PATIENCE_S)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        intruders = None if intruder is None else [read(raw) for raw in long_raws if start <= raw.started_at < end]
        return Run(start, end, [read(raw) for raw in self._raws], intruders, cpu / (end - start))


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
