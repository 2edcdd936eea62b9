"""Where the tokens of a request come from: from a worker, or from the router that already has it.

One rid has one owner at a time. A client that comes elsewhere is served by following that owner; only when nobody has
the request any more does its router adopt it, and the worker, or another run of it, gives the same tokens again.
It knows nothing of text, of prompts or of how clients are answered.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import grpc

from services.router.follow import Source, take, watch
from services.router.generation import Ending, Generation
from services.router.ledger import Ledger, Owed
from services.router.reconcile import ended_error
from shared import crash
from shared.errors import InvalidRequest, NotFound, Unavailable, from_exception, from_object
from shared.mtls import Peer
from shared.pb import delivery_pb2, delivery_pb2_grpc
from shared.queue.client import Queue
from shared.queue.registry import Registry
from shared.queue.rid import is_rid
from shared.queue.types import Found, NewRequest
from shared.rpc import Garbled, connect, whole

FOLLOW_S = 1.0
RETRY_S = 0.3

logger = logging.getLogger(__name__)

Messages = AsyncGenerator[delivery_pb2.Followed, None]


# At once; first come, first served. The pool of Redis connections is not: in a rush it lets a request starve.
MAX_PUTS = 8


class Resumer:
    """Finds the owner of a request, or makes this router its owner."""

    def __init__(
        self,
        ledger: Ledger,
        queue: Queue,
        registry: Registry,
        router_id: str,
        default_deadline_s: float,
        peer: Peer | None = None,
    ):
        self._ledger = ledger
        self._queue = queue
        self._registry = registry
        self._router_id = router_id
        self._default_deadline_ms = int(default_deadline_s * 1000)
        # What another router is dialled with.
        self._peer = peer
        self._putting = asyncio.Semaphore(MAX_PUTS)
        # Streams of other routers that ended because of what was said on them.
        self.num_refused = 0
        ledger.moved = self.moved

    def local(self, rid: str, tenant: str) -> tuple[Source, NewRequest] | None:
        """What this router itself has of a tenant's request."""
        if (entry := self._ledger.owed.get(rid)) is not None:
            source, request = entry.generation.source, entry.request
        elif (kept := self._ledger.archive.find(rid)) is not None:
            source, request = kept.source, kept.request
        else:
            return None
        return (source, request) if request.tenant == tenant else None

    async def asked(self, rid: str, tenant: str) -> NewRequest:
        """What was asked under `rid`. Raises NotFound, also for another tenant's, and what its end was if it cannot go on."""
        nowhere = NotFound("There is no such stream, or no longer: send the request again.", code="stream_not_found")
        if not is_rid(rid):
            raise nowhere
        if (here := self.local(rid, tenant)) is not None:
            return here[1]
        found = await self._queue.look(rid)
        if found is None or found.request.tenant != tenant:
            raise nowhere
        answer = found.answer
        if answer.state == "dead" or (answer.state == "cancelled" and not found.revivable):
            raise ended_error(answer.reason)
        if not found.request.payload:
            raise nowhere
        return found.request

    async def put(self, generation: Generation, new: NewRequest) -> None:
        """A request came in: puts it, or attaches to what its key has started already."""
        if (here := self.local(new.rid, new.tenant)) is not None:
            self._check_digest(here[1], new)
            self._feed(generation, new, watch(here[0]))
            return
        # Held before it is put: its worker may claim it before the answer is here.
        entry = _owed(generation, new)
        self._ledger.add(entry)
        async with self._putting:
            answer = await self._queue.put(new)
        crash.point("router.put")
        if answer.verdict == "exists":
            self._ledger.let_go(generation)
            await self.attach(generation, new)
        else:
            self._ledger.adopted(entry, answer)

    async def attach(self, generation: Generation, request: NewRequest) -> None:
        """Gives `generation` the tokens of a request that exists. Raises NotFound if nobody has it any more."""
        messages = await self._find(generation, request)
        if messages is not None:
            self._feed(generation, request, messages)

    def moved(self, entry: Owed) -> None:
        """The queue names a newer connection, perhaps of a put that was given up and came late: its client still gets all."""
        self._ledger.let_go(entry.generation)
        self._feed(entry.generation, entry.again(), None)

    def _check_digest(self, first: NewRequest, again: NewRequest) -> None:
        # A record that finish made after Redis forgot the request says nothing of what was asked.
        if first.digest and first.digest != again.digest:
            raise InvalidRequest("This idempotency key was used for a different request.", code="idempotency_key_reused")

    def _feed(self, generation: Generation, request: NewRequest, messages: Messages | None) -> None:
        task = asyncio.create_task(self._feed_always(generation, request, messages), name=f"follow {generation.rid}")
        self._ledger.feeds[generation] = task

    async def _feed_always(self, generation: Generation, request: NewRequest, messages: Messages | None) -> None:
        """Until all has come; from owner to owner, and to a worker if there is none left."""
        if messages is None:
            messages = await self._find_again(generation, request)
        try:
            while messages is not None and not await self._take_all(generation, messages):
                messages = await self._find_again(generation, request)
        except Exception as error:
            logger.exception("following failed", extra={"rid": generation.rid})
            generation.end(from_exception(error), Ending.FAILED)
        if messages is None:
            self._ledger.feeds.pop(generation, None)

    async def _take_all(self, generation: Generation, messages: Messages) -> bool:
        """Whether it came to its end, not just to the owner's."""
        ended: set[int] = set()
        try:
            async with aclosing(messages):
                async for message in messages:
                    if message.HasField("error"):
                        generation.end(from_object(message.error.message, message.error.code or None), Ending.FAILED)
                        return True
                    if not take(generation.held, message, ended):
                        return False
                    generation.source.tell()
        except (grpc.RpcError, Unavailable) as error:
            logger.info("the router that was followed is gone", extra={"rid": generation.rid, "cause": repr(error)[:200]})
        except (Garbled, ValueError) as error:
            cause = repr(error)[:200]
            logger.error("the router that was followed breaks the protocol", extra={"rid": generation.rid, "cause": cause})
            self.num_refused += 1
            await asyncio.sleep(RETRY_S)
        return len(ended) == len(generation.held.choices)

    async def _find_again(self, generation: Generation, request: NewRequest) -> Messages | None:
        while not generation.over:
            try:
                return await self._find(generation, request)
            except Unavailable:
                # An adopt that got no answer leaves it owed here: it would find itself, and follow itself for ever.
                self._ledger.give_back(generation)
                await asyncio.sleep(RETRY_S)
            except (NotFound, InvalidRequest) as error:
                generation.end(error, Ending.FAILED)
        return None

    async def _find(self, generation: Generation, request: NewRequest) -> Messages | None:
        """The messages to follow; None if this router owns the request from now on."""
        rid, tenant = request.rid, request.tenant
        if (here := self.local(rid, tenant)) is None:
            found = await self._queue.look(rid)
            if found is not None and found.request.tenant == tenant:
                self._check_digest(found.request, request)
                messages = await self._follow(found, tenant)
                if messages is not None:
                    return messages
            # While Redis and the other router were asked another client may have brought it here.
            here = self.local(rid, tenant)
        if here is not None:
            self._check_digest(here[1], request)
            return watch(here[0])
        await self._adopt(generation, request, found)
        return None

    async def _follow(self, found: Found, tenant: str) -> Messages | None:
        """The owner's messages, if there is an owner that answers and has it."""
        owner = found.answer.router
        facts = await self._registry.router(owner) if owner and owner != self._router_id else None
        if facts is None:
            return None
        messages = _remote(facts.deliver_address, self._peer, found.request.rid, tenant)
        try:
            async with asyncio.timeout(FOLLOW_S):
                await anext(messages)
        except (grpc.RpcError, TimeoutError, StopAsyncIteration, Garbled):
            await messages.aclose()
            return None
        return messages

    async def _adopt(self, generation: Generation, request: NewRequest, found: Found | None) -> None:
        left = request.deadline_ms
        if found is not None:
            left = self._default_deadline_ms if found.answer.state == "done" else found.request.deadline_ms
        request = replace(request, router_id=self._router_id, deadline_ms=left)
        self._ledger.feeds.pop(generation, None)
        entry = _owed(generation, request)
        self._ledger.add(entry)
        logger.info("taking up a stream", extra={"rid": request.rid})
        body = request if request.payload else None
        answer = await self._queue.adopt(request.rid, tenant=request.tenant, router_id=self._router_id, request=body)
        crash.point("router.adopted")
        if answer.verdict in ("missing", "gone"):
            raise NotFound("There is no such stream any more: send the request again.", code="stream_not_found")
        self._ledger.adopted(entry, answer)


def _owed(generation: Generation, request: NewRequest) -> Owed:
    deadline = time.monotonic() + request.deadline_ms / 1000 if request.deadline_ms else float("inf")
    return Owed(generation, request, deadline)


async def _remote(address: str, peer: Peer | None, rid: str, tenant: str) -> Messages:
    async with connect(address, peer) as channel:
        call = delivery_pb2_grpc.DeliveryStub(channel).Follow(delivery_pb2.FollowRequest(rid=rid, tenant=tenant))
        async for message in call:
            yield whole(message)
