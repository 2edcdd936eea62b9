"""A request that this process asks of itself: the same endpoint, validator and errors as for one that came over a socket.

It knows nothing of batches, nor of what endpoints do.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.types import Message

from services.router.accept import MAX_BAND
from services.router.answers import shown
from services.router.exchange import Exchange
from services.router.front import Front

Handle = Callable[[Exchange, Front], Awaitable[None]]


async def ask(
    handle: Handle, front: Front, *, path: str, tenant: str, key_id: str, body: dict[str, Any], headers: dict[str, str]
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer; an error is an answer, too. As the key is now: it may be gone, or changed."""
    sent: list[Message] = []
    incoming: asyncio.Queue[Message] = asyncio.Queue()
    incoming.put_nowait({"type": "http.request", "body": msgspec.json.encode(body), "more_body": False})

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "path_params": {},
        "query_string": b"",
    }
    exchange = Exchange(scope, incoming.get, send)
    exchange.band = MAX_BAND
    try:
        exchange.identity = front.keys.known(tenant, key_id)
        await handle(exchange, front)
    except Exception as exception:
        await exchange.answer_error(shown(exception, exchange.request_id))
    start = sent[0]
    found = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
    return start["status"], found, b"".join(message.get("body", b"") for message in sent[1:])
