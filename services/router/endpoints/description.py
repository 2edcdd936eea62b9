"""GET /openapi.json: the API's description; pages that show it are left to whoever reads it. It knows nothing of its contents."""

from functools import cache

import msgspec

from services.router.endpoints.health import own_version
from services.router.exchange import Exchange
from services.router.front import Front
from services.router.openapi import description
from services.router.operations import OPERATIONS


@cache
def _document() -> bytes:
    return msgspec.json.encode(description(OPERATIONS, own_version()))


async def openapi(exchange: Exchange, front: Front) -> None:
    """The whole description, made once."""
    await exchange.answer(200, _document())
