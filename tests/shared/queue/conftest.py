"""A redis-server for the queue's tests: one process a session, emptied for each test."""

from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from shared.queue.client import Queue
from shared.queue.connection import connect
from tests.redis_server import RedisServer, redis_server


@pytest.fixture(scope="session")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture
async def redis(server: RedisServer) -> AsyncIterator[Redis]:
    client = connect(server.url)
    await client.flushall()
    yield client
    await client.aclose()
    await client.connection_pool.disconnect()


@pytest.fixture
async def queue(redis: Redis) -> Queue:
    queue = Queue(redis, model="test")
    await queue.load()
    return queue
