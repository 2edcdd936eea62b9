"""Work that constrains its tokens goes to the engine only once the runner is ready for that: grammars compile here.

One thread of its own does it, so that neither the engine nor the event loop waits. It knows nothing of what is prepared.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from services.worker.engine.engine import Engine
from services.worker.outbound import Outbound
from shared.errors import RoadtrainError, from_exception

logger = logging.getLogger(__name__)


class Readying:
    """Between the consumer and the engine; called on the event loop.

    holds: whether an assignment is still this worker's. failed: told of one that could not be readied.
    """

    def __init__(self, engine: Engine, holds: Callable[[Outbound], bool], failed: Callable[[Outbound], None]):
        self._engine = engine
        self._holds = holds
        self._failed = failed
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="readying")
        self._waiting: dict[Outbound, asyncio.Task[None]] = {}

    def submit(self, outbound: Outbound) -> None:
        """Runs the work of `outbound`, now or when it is ready."""
        if not outbound.work.params.is_constrained or outbound.work.guide is not None:
            self._engine.submit(outbound.work)
        elif outbound not in self._waiting:
            self._waiting[outbound] = asyncio.create_task(self._ready(outbound))

    def restart(self, outbound: Outbound) -> None:
        """Runs what goes on from the log of `outbound` as it is."""
        outbound.restart()
        self.submit(outbound)

    def close(self) -> None:
        """Readies nothing more."""
        for task in self._waiting.values():
            task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _ready(self, outbound: Outbound) -> None:
        loop = asyncio.get_running_loop()
        failure: RoadtrainError | None = None
        guide: object = None
        try:
            guide = await loop.run_in_executor(self._thread, self._engine.prepare, outbound.work.params)
        except Exception as error:
            if not isinstance(error, RoadtrainError):
                logger.exception("a request could not be readied", extra={"rid": outbound.rid})
            failure = from_exception(error)
        del self._waiting[outbound]
        if not self._holds(outbound):
            return
        if failure is not None:
            outbound.fail(failure)
            self._failed(outbound)
            return
        outbound.work = replace(outbound.work, guide=guide)
        # What its router said meanwhile counts.
        self._engine.submit(outbound.restart())
        if outbound.paused:
            self._engine.pause(outbound.work.key)
