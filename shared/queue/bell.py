"""The bell: pub/sub that wakes idle workers when something is put.

Messages may be lost and say nothing: whoever waits asks the queue afterwards anyway, and asks now and then without a ring.
It knows nothing of what was put.
"""

import asyncio
from collections.abc import Sequence
from types import TracebackType

from redis.asyncio.client import PubSub
from redis.exceptions import RedisClusterException, RedisError

from shared.queue.connection import Client


class Bell:
    """One subscription on a connection of its own; it survives restarts and changes of the primary."""

    def __init__(self, redis: Client, channels: Sequence[str]):
        self._redis = redis
        self._channels = channels
        self._pubsub: PubSub | None = None

    async def __aenter__(self) -> "Bell":
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._close()

    async def wait(self, timeout_s: float = 0.25) -> bool:
        """True as soon as it rings (all rings so far count as one), False after timeout_s, with Redis down as well.

        Keep timeout_s near 0.25: a request that waits for another worker's prefix becomes free without a ring.
        """
        try:
            return await self._wait(timeout_s)
        except (RedisError, RedisClusterException, OSError):
            await self._close()
            await asyncio.sleep(timeout_s)
            return False

    async def _wait(self, timeout_s: float) -> bool:
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        if self._pubsub is None:
            self._pubsub = self._redis.pubsub()
            await self._pubsub.subscribe(*self._channels)
        rung = False
        while rung or (left := end - loop.time()) > 0:
            message = await self._pubsub.get_message(timeout=0.0 if rung else left)
            if rung and message is None:
                break
            rung = rung or (message is not None and message["type"] == "message")
        return rung

    async def _close(self) -> None:
        if self._pubsub is not None:
            pubsub, self._pubsub = self._pubsub, None
            try:
                await pubsub.aclose()  # type: ignore[no-untyped-call]
            except (RedisError, RedisClusterException, OSError):
                return
