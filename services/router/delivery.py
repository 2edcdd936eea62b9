"""The Deliver stream's router end: one connection per worker, one answer per message, in order.

A connection that breaks is reported with the assignments that were bound to it. It knows nothing of what the messages
mean, of Redis or of clients.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from services.router.follow import Source, watch
from services.router.sequencer import PROTOCOL_VERSION, Binding, Link, ProtocolError, Sequencer
from shared.errors import InvalidRequest, NotFound
from shared.pb import delivery_pb2, delivery_pb2_grpc
from shared.queue.types import NewRequest

# Acks alone wait for more of them, for up to so long: a worker holds back nothing before it is owed twice as many.
ACK_ROWS = 32
ACK_S = 0.1

logger = logging.getLogger(__name__)


class Shelf(Protocol):
    """What other routers may follow."""

    def local(self, rid: str, tenant: str) -> tuple[Source, NewRequest] | None:
        """What this router has of a tenant's request."""


class Delivery(delivery_pb2_grpc.DeliveryServicer):
    """Speaks for one sequencer. `on_break` gets what was bound to a connection when it ended."""

    def __init__(self, sequencer: Sequencer, on_break: Callable[[list[Binding]], None], shelf: Shelf):
        self._sequencer = sequencer
        self._on_break = on_break
        self._shelf = shelf
        self.num_refused = 0

    async def Deliver(  # noqa: N802 - the name is protos/delivery.proto's
        self, messages: AsyncIterator[delivery_pb2.FromWorker], context: Any
    ) -> AsyncIterator[delivery_pb2.FromRouter]:
        """See protos/delivery.proto."""
        first = await anext(messages, None)
        if first is None:
            return
        wake = asyncio.Event()
        try:
            link = _link(first, wake)
        except InvalidRequest:
            self.num_refused += 1
            raise
        logger.info("a worker dialled in", extra={"owner": link.owner})
        reading = asyncio.create_task(self._read(link, first, messages))
        reading.add_done_callback(lambda _: wake.set())
        try:
            while not reading.done():
                await wake.wait()
                wake.clear()
                if not reading.done():
                    yield link.take()
            reading.result()
        except ProtocolError as error:
            self.num_refused += 1
            logger.error("a worker broke the protocol; its stream ends", extra={"owner": link.owner, "cause": str(error)})
            raise InvalidRequest(f"Protocol error: {error}.", code="protocol_error") from error
        finally:
            reading.cancel()
            logger.info("a worker's stream ended", extra={"owner": link.owner})
            self._on_break(self._sequencer.close(link))

    async def Follow(  # noqa: N802 - the name is protos/delivery.proto's
        self, request: delivery_pb2.FollowRequest, context: Any
    ) -> AsyncIterator[delivery_pb2.Followed]:
        """See protos/delivery.proto. Raises NotFound for what this router does not have."""
        found = self._shelf.local(request.rid, request.tenant)
        if found is None:
            raise NotFound("This router does not have that request.", code="stream_not_found")
        async for message in watch(found[0]):
            yield message

    async def _read(self, link: Link, first: delivery_pb2.FromWorker, messages: AsyncIterator[delivery_pb2.FromWorker]) -> None:
        self._sequencer.receive(link, first)
        link.wake()
        async for message in messages:
            num_acks = link.num_acks
            self._sequencer.receive(link, message)
            if link.num_acks >= ACK_ROWS or link.says_more:
                link.wake()
            elif link.num_acks and not num_acks:
                asyncio.get_running_loop().call_later(ACK_S, _answer, link)


def _answer(link: Link) -> None:
    if link.num_acks:
        link.wake()


def _link(first: delivery_pb2.FromWorker, wake: asyncio.Event) -> Link:
    """The connection that `first` introduces. Raises InvalidRequest if it does not, or speaks another version."""
    hello = first.hello
    if not first.HasField("hello") or not hello.worker_id or not hello.boot_id:
        raise InvalidRequest("The first message must say hello.", param="hello", code="protocol_error")
    if hello.version != PROTOCOL_VERSION:
        raise InvalidRequest(
            f"Protocol version {hello.version} is not spoken here, only {PROTOCOL_VERSION}.",
            param="hello.version",
            code="protocol_error",
        )
    return Link(owner=f"{hello.worker_id}:{hello.boot_id}", fingerprint=hello.fingerprint, wake=wake.set)
