"""Ending background tasks for sure. It knows nothing of what they do."""

import asyncio
from collections.abc import Iterable
from typing import Any

ASK_AGAIN_S = 1.0


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels tasks until every one has ended; their results and exceptions are dropped.

    Once is not enough: up to Python 3.11 asyncio.wait_for, which clients of sockets are built on, forgets a cancel that
    meets its result.
    """
    every = list(tasks)
    left = {task for task in every if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=ASK_AGAIN_S)
    for task in every:
        if not task.cancelled():
            # An exception that nobody looks at is logged as forgotten.
            task.exception()
