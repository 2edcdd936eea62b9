"""Responses that go on without a client: read to their end by this router, or by another if it dies.

It knows nothing of bodies and of HTTP.
"""

import msgspec

from services.router.auth import Identity
from services.router.errands import Work
from services.router.front import Front
from services.router.generate import Generation
from services.router.logprobs import chat_content
from services.router.parts import PartReader
from services.router.responses.kept import Kept, Responses
from services.router.responses.output import ResponseWriter
from shared.errors import NotFound, RoadtrainError, Unavailable, from_exception

KIND = "response"
MAX_RESPONSES = 1000


class Pending(msgspec.Struct, frozen=True):
    """A response that has not ended, as an errand."""

    tenant: str


class Background:
    """Of one router."""

    def __init__(self, front: Front):
        self._front = front
        self._responses = Responses(front.plane.store)

    async def offer(self, response_id: str, value: bytes) -> Work | None:
        """See Errands: one whose router died is made again, with the same tokens."""
        tenant = msgspec.json.decode(value, type=Pending).tenant
        try:
            kept, _ = await self._responses.get(tenant, response_id)
        except NotFound:
            kept = None
        if kept is None or kept.ended:
            await self._front.errands[KIND].done(response_id)
            return None
        return self._take_up(tenant, kept)

    async def begin(self, tenant: str, kept: Kept, generation: Generation) -> None:
        """Goes on with a generation that was just started. Raises Unavailable."""
        await self._front.errands[KIND].begin(
            kept.response["id"], msgspec.json.encode(Pending(tenant)), self._drive(tenant, kept, generation)
        )

    async def _take_up(self, tenant: str, kept: Kept) -> None:
        try:
            # Without limits: it was charged when it began.
            generation, _ = await self._front.plane.generator.resume(kept.rid, "", Identity(tenant))
        except Unavailable:
            raise
        except RoadtrainError as error:
            await self._end(tenant, kept, kept.response | _failed(error))
            return
        await self._drive(tenant, kept, generation)

    async def _drive(self, tenant: str, kept: Kept, generation: Generation) -> None:
        writer = writer_of(self._front, kept.response, generation)
        try:
            async for happened in generation.events():
                writer.render(happened)
        except Unavailable:
            raise
        except Exception as exception:
            writer.fail(from_exception(exception))
        await self._end(tenant, kept, writer.response)

    async def _end(self, tenant: str, kept: Kept, response: dict[str, object]) -> None:
        await self._responses.end(tenant, msgspec.structs.replace(kept, response=response))
        await self._front.errands[KIND].done(kept.response["id"])


def writer_of(front: Front, head: dict[str, object], generation: Generation, *, after: int = -1) -> ResponseWriter:
    """Tells the response that begins with `head`, of all tokens from the first."""
    vocabulary = front.plane.vocabulary
    reader = PartReader(generation, vocabulary)
    writer = ResponseWriter(head | {"status": "in_progress"}, generation, reader, vocabulary, after=after)
    if generation.has_logprobs:
        writer.entries = lambda event: [] if event.logprobs is None else chat_content(vocabulary, event.logprobs)
    return writer


def _failed(error: RoadtrainError) -> dict[str, object]:
    return {"status": "failed", "error": {"code": "server_error", "message": error.message}}
