"""The queue as the command's own processes use it: one short-lived connection. It knows nothing of what is asked of it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shared.config import Settings
from shared.queue.client import Queue
from shared.queue.connection import Client, connect_as


@asynccontextmanager
async def open_queue(settings: Settings) -> AsyncIterator[tuple[Queue, Client]]:
    """The queue of the model that `settings` serve. Raises StartupError without an address, Unavailable when used in vain."""
    redis = connect_as(settings)
    try:
        yield Queue(redis, model=settings.names[0], num_shards=settings.queue_shards), redis
    finally:
        await redis.aclose()
