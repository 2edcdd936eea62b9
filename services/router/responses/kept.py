"""Responses that can be fetched, continued and deleted later: what was asked and said, in Redis, for a day.

It knows nothing of how a response is made.
"""

from typing import Any

import msgspec

from services.router.store import Store, Stored
from shared.errors import InvalidRequest, NotFound

KEEP_S = 24 * 3600
KIND = "response"
# Of one tenant; the oldest are forgotten first.
MOST = 2000
MAX_BYTES = 4 * 2**20
PREFIX = "resp_"


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """One response. items: the conversation up to what was asked, of which the last num_own were asked with it."""

    response: dict[str, Any]
    items: list[dict[str, Any]]
    num_own: int

    @property
    def rid(self) -> str:
        """The request that makes it."""
        rid: str = self.response["id"].removeprefix(PREFIX)
        return rid

    @property
    def ended(self) -> bool:
        """Whether its answer is all there is."""
        return self.response["status"] not in ("queued", "in_progress")


class Responses:
    """All that are kept. Every method raises Unavailable when Redis cannot be asked."""

    def __init__(self, store: Store):
        self._store = store

    async def get(self, tenant: str, response_id: str) -> tuple[Kept, int]:
        """The tenant's response and its version. Raises NotFound."""
        stored: Stored | None = await self._store.read(tenant, KIND, response_id)
        if stored is None:
            text = f"There is no response '{response_id[:64]}'; responses are kept for a day, and only with 'store'."
            raise NotFound(text, param="response_id")
        return msgspec.json.decode(stored.value, type=Kept), stored.version

    async def put(self, tenant: str, kept: Kept, *, version: int = 0) -> bool:
        """Writes over that version; False if it is another by now. Raises InvalidRequest if it is too long to be kept."""
        value = msgspec.json.encode(kept)
        if len(value) > MAX_BYTES:
            text = "The conversation is too long to be kept; send it whole, with 'store': false."
            raise InvalidRequest(text, param="input", code="context_length_exceeded")
        return await self._store.write(tenant, KIND, kept.response["id"], value, version=version, ttl_s=KEEP_S, most=MOST)

    async def end(self, tenant: str, kept: Kept) -> None:
        """Writes how one ended, unless it was cancelled or deleted meanwhile."""
        while True:
            try:
                before, version = await self.get(tenant, kept.response["id"])
            except NotFound:
                return
            if before.ended or await self.put(tenant, kept, version=version):
                return

    async def delete(self, tenant: str, response_id: str) -> bool:
        """Whether there was one."""
        return await self._store.delete(tenant, KIND, response_id)
