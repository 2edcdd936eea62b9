"""The worker's own port: health, status, draining. See protos/worker.proto. No traffic comes this way.

It translates and decides nothing; it knows nothing of how the engine or the consumer work.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from services.worker.consumer import Consumer
from services.worker.engine.engine import Engine
from services.worker.engine.step import RunnerLimits
from shared.pb import worker_pb2, worker_pb2_grpc
from shared.queue.types import Owner
from shared.rpc import Server


class Admin(worker_pb2_grpc.WorkerServicer):
    """Answers operators. drain(grace_s) begins to drain and returns at once."""

    def __init__(
        self, owner: Owner, model: str, limits: RunnerLimits, engine: Engine, consumer: Consumer, drain: Callable[[float], None]
    ):
        self._owner = owner
        self._model = model
        self._limits = limits
        self._engine = engine
        self._consumer = consumer
        self._drain = drain
        # Whose port this is; set once it is open.
        self.server: Server

    async def Status(self, request: worker_pb2.StatusRequest, context: Any) -> worker_pb2.StatusReply:  # noqa: N802
        """See protos/worker.proto."""
        stats = self._engine.stats()
        return worker_pb2.StatusReply(
            worker_id=self._owner.worker_id,
            boot_id=self._owner.boot_id,
            model=self._model,
            fingerprint=self._limits.fingerprint,
            num_running=stats.running,
            num_waiting=stats.waiting + stats.paused,
            num_blocks=stats.num_blocks,
            num_free_blocks=stats.free_blocks,
            num_steps=stats.steps,
            draining=self._consumer.draining,
            kv_waste=stats.kv_waste,
            num_tokens_computed=stats.computed_tokens,
            num_tokens_cached=stats.cached_tokens,
            num_preemptions=stats.preemptions,
            num_bad_payloads=self._consumer.num_bad_payloads,
            num_protocol_errors=self._consumer.num_protocol_errors + self.server.num_undecodable,
            num_tasks=len(asyncio.all_tasks()),
        )

    async def Drain(self, request: worker_pb2.DrainRequest, context: Any) -> worker_pb2.DrainReply:  # noqa: N802
        """See protos/worker.proto."""
        self._drain(float(request.grace_s))
        return worker_pb2.DrainReply(num_running=len(self._consumer.held))
