"""Ending background tasks for sure. It knows nothing of what they do."""

import asyncio
from collections.abc import Iterable
from typing import Any

ASK_AGAIN_S = 0.1


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels tasks until every one has ended; their results and exceptions are dropped.

    Once is not enough: up to Python 3.11 asyncio.wait_for, which clients of sockets are built on, forgets a cancel that
    meets its result.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        done, left = await asyncio.wait(left, timeout=ASK_AGAIN_S)
        for task in done:
            if not task.cancelled():
                task.exception()
