"""Tells the queue that a worker's process is gone for sure, so that nobody waits for proof of its death.

Its parent saw it exit; which boot that was stands in the registry, where the next boot has not been yet. It knows
nothing of what the worker held.
"""

import asyncio
import logging

from services.launcher.queues import open_queue
from shared.config import Settings
from shared.errors import RoadtrainError
from shared.queue.registry import Registry
from shared.queue.types import Owner

PATIENCE_S = 2.0

logger = logging.getLogger(__name__)


async def report_exit(settings: Settings, worker_id: str) -> None:
    """Says so. Never raises: without it the death is proven by the next boot, or by silence."""
    try:
        async with asyncio.timeout(PATIENCE_S), open_queue(settings) as (queue, redis):
            boots = [facts.boot_id for facts in await Registry(redis).workers() if facts.worker_id == worker_id]
            for boot_id in boots:
                await queue.exited(Owner(worker_id, boot_id))
    except (RoadtrainError, TimeoutError, OSError) as error:
        logger.warning("could not report a worker's exit", extra={"worker": worker_id, "cause": repr(error)})
