"""The Deliver streams from the worker's end: one link per router, dialled by identity and dialled again when it breaks.

A link says Hello, then Claimed for all it carries, then one message per engine step with the tokens of all its
assignments; what cannot be written yet waits in their logs, never in a queue. It knows nothing of Redis scripts, leases
or the engine: what a router decides is told to `Decisions`.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import grpc

from services.worker.outbound import Message, Outbound
from shared import crash
from shared.mtls import Peer
from shared.pb import delivery_pb2, delivery_pb2_grpc, types_pb2
from shared.queue.types import Owner
from shared.rpc import Garbled, connect, one_line, whole
from shared.tasks import end_tasks

PROTOCOL_VERSION = 1
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.1, 2.0
DIAL_TIMEOUT_S = 2.0
IDLE_S = 60.0
# A router that has not answered so many rows of tokens is behind: what comes meanwhile travels together, for up to so long.
UNANSWERED_ROWS = 64
ANSWER_S = 0.05

logger = logging.getLogger(__name__)

Resolve = Callable[[str], Awaitable[str | None]]


class Decisions(Protocol):
    """What routers decide about assignments; called on the event loop, must not wait.

    num_protocol_errors counts the streams that ended because of what a router said on them.
    """

    num_protocol_errors: int

    def begin(self, outbound: Outbound, begin: delivery_pb2.Begin) -> None:
        """Go on from what was accepted."""

    def finished(self, outbound: Outbound, usage: types_pb2.Usage) -> None:
        """Delivered whole: book `usage`."""

    def cancelled(self, outbound: Outbound) -> None:
        """Nobody wants it."""

    def fenced(self, outbound: Outbound, floor: int) -> None:
        """Somebody else, bound with epoch `floor`, owns it."""

    def stopped(self, outbound: Outbound, choice: int, num_tokens: int) -> None:
        """A stop string ended a choice."""

    def paused(self, outbound: Outbound, paused: bool) -> None:
        """Its reader is slow, or is no longer."""


class Delivery:
    """All links of one worker. Use on one event loop."""

    def __init__(self, owner: Owner, fingerprint: str, resolve: Resolve, decisions: Decisions, peer: Peer | None = None):
        self.hello = delivery_pb2.Hello(
            version=PROTOCOL_VERSION, worker_id=owner.worker_id, boot_id=owner.boot_id, fingerprint=fingerprint
        )
        self._resolve = resolve
        self._decisions = decisions
        self._peer = peer
        self._links: dict[str, Link] = {}

    def attach(self, outbound: Outbound) -> None:
        """Claims `outbound` at the router it names, over a link that is opened if there is none."""
        link = self._links.get(outbound.router)
        if link is None or link.closed:
            link = Link(outbound.router, self.hello, self._resolve, self._decisions, self._peer)
            self._links[outbound.router] = link
        link.claim(outbound)

    def detach(self, outbound: Outbound) -> None:
        """Says nothing more of `outbound`, and hears nothing more."""
        link = self._links.get(outbound.router)
        if link is not None:
            link.drop(outbound)

    def touch(self, outbound: Outbound) -> None:
        """`outbound` may have something to send."""
        link = self._links.get(outbound.router)
        if link is not None:
            link.touch(outbound)

    async def close(self) -> None:
        """Ends all links."""
        links, self._links = list(self._links.values()), {}
        await asyncio.gather(*(link.close() for link in links))


class Link:
    """The connection to one router, kept while it carries assignments and IDLE_S longer."""

    def __init__(
        self, router_id: str, hello: delivery_pb2.Hello, resolve: Resolve, decisions: Decisions, peer: Peer | None = None
    ):
        self.router_id = router_id
        self.closed = False
        self._hello = hello
        self._resolve = resolve
        self._decisions = decisions
        self._peer = peer
        self._carried: set[Outbound] = set()
        self._streams: dict[int, Outbound] = {}
        self._next_stream = 1
        self._to_claim: dict[Outbound, None] = {}
        self._dirty: dict[Outbound, None] = {}
        self._wake = asyncio.Event()
        self._answered = asyncio.Event()
        self._num_unanswered = 0
        self._address: str | None = None
        self._task = asyncio.create_task(self._keep(), name=f"deliver {router_id}")

    def claim(self, outbound: Outbound) -> None:
        """Carries `outbound` from now on; its Claimed is the next thing said, under a new number."""
        self._streams.pop(outbound.stream, None)
        outbound.detach()
        self._carried.add(outbound)
        self._to_claim[outbound] = None
        self._wake.set()

    def drop(self, outbound: Outbound) -> None:
        """Carries it no more; what the router still says of its number is ignored."""
        self._carried.discard(outbound)
        self._to_claim.pop(outbound, None)
        self._dirty.pop(outbound, None)
        self._streams.pop(outbound.stream, None)
        outbound.detach()

    def touch(self, outbound: Outbound) -> None:
        """`outbound` may have something to send."""
        if outbound.begun:
            self._dirty[outbound] = None
            self._wake.set()

    async def close(self) -> None:
        """Ends the connection."""
        await end_tasks([self._task])

    async def _keep(self) -> None:
        """Dials until nothing is carried. The first re-dial is at once: a router waits 300 ms before it revokes."""
        backoff_s = 0.0
        try:
            while True:
                if await self._dial():
                    backoff_s = 0.0
                if not self._carried:
                    return
                await asyncio.sleep(random.uniform(0.5, 1.0) * backoff_s)
                backoff_s = min(MAX_BACKOFF_S, max(FIRST_BACKOFF_S, 2 * backoff_s))
        finally:
            self.closed = True

    async def _dial(self) -> bool:
        """One connection from Hello to its end; whether the router said anything."""
        # A router moves only with its boot, so an old address is worth a try while Redis cannot be asked.
        self._address = await self._resolve(self.router_id) or self._address
        if self._address is None:
            return False
        heard = [False]
        async with connect(self._address, self._peer) as channel:
            try:
                await asyncio.wait_for(channel.channel_ready(), DIAL_TIMEOUT_S)
                call = delivery_pb2_grpc.DeliveryStub(channel).Deliver()
                await self._converse(call, heard)
            except TimeoutError:
                logger.warning("router does not answer", extra={"router": self.router_id, "address": self._address})
            except (grpc.RpcError, asyncio.InvalidStateError) as error:
                logger.warning("stream to router broke", extra={"router": self.router_id, "cause": one_line(error)})
            except (Garbled, ValueError, IndexError) as error:
                self._decisions.num_protocol_errors += 1
                # What it said is no answer: it is dialled again as one that has not answered, later each time.
                heard[0] = False
                logger.error("a router broke the protocol", extra={"router": self.router_id, "cause": one_line(error)})
            finally:
                for outbound in self._carried:
                    outbound.detach()
        return heard[0]

    async def _converse(self, call: Any, heard: list[bool]) -> None:
        self._streams.clear()
        self._next_stream = 1
        self._dirty.clear()
        self._to_claim = dict.fromkeys(self._carried)
        self._wake.set()
        self._answered.set()
        self._num_unanswered = 0
        reading = asyncio.create_task(self._read(call, heard))
        writing = asyncio.create_task(self._write(call))
        try:
            await asyncio.wait((reading, writing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end_tasks((reading, writing))
            call.cancel()
        for task in (reading, writing):
            result = None if task.cancelled() else task.exception()
            if isinstance(result, Exception):
                raise result

    async def _write(self, call: Any) -> None:
        await call.write(delivery_pb2.FromWorker(hello=self._hello))
        while True:
            try:
                async with asyncio.timeout(IDLE_S):
                    await self._wake.wait()
            except TimeoutError:
                if not self._carried:
                    return
                continue
            if not self._answered.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ANSWER_S):
                        await self._answered.wait()
            self._wake.clear()
            message = self._message()
            self._num_unanswered += message.num_rows
            if self._num_unanswered >= UNANSWERED_ROWS:
                self._answered.clear()
            body = message.whole()
            if body is not None:
                await call.write(body)
                crash.point("worker.sent")

    def _message(self) -> Message:
        """All that can be said now, of all assignments, up to a message's size."""
        message = Message()
        for outbound in self._to_claim:
            outbound.stream = self._next_stream
            self._next_stream += 1
            self._streams[outbound.stream] = outbound
            message.body.claimed.add(stream=outbound.stream, rid=outbound.rid, epoch=outbound.epoch)
        self._to_claim.clear()
        dirty, self._dirty = self._dirty, {}
        for outbound in dirty:
            if outbound.fill(message):
                self._dirty[outbound] = None
                self._wake.set()
        return message

    async def _read(self, call: Any, heard: list[bool]) -> None:
        async for message in call:
            heard[0] = True
            self._num_unanswered = 0
            self._answered.set()
            self._receive(whole(message))

    def _receive(self, message: delivery_pb2.FromRouter) -> None:
        streams, decisions = self._streams, self._decisions
        for begin in message.begin:
            if (outbound := streams.get(begin.stream)) is not None:
                decisions.begin(outbound, begin)
                self.touch(outbound)
        acks = message.acks
        for stream, choice, num_tokens in zip(acks.stream, acks.choice, acks.num_tokens, strict=True):
            if (outbound := streams.get(stream)) is not None and outbound.ack(choice, num_tokens):
                self.touch(outbound)
        for resend in message.resend:
            if (outbound := streams.get(resend.stream)) is not None:
                outbound.resend(resend.choice, resend.idx)
                self.touch(outbound)
        for stop in message.stop:
            if (outbound := streams.get(stop.stream)) is not None:
                decisions.stopped(outbound, stop.choice, stop.num_tokens)
        for stream in message.pause:
            if (outbound := streams.get(stream)) is not None:
                decisions.paused(outbound, True)
        for stream in message.resume:
            if (outbound := streams.get(stream)) is not None:
                decisions.paused(outbound, False)
        self._receive_ends(message)

    def _receive_ends(self, message: delivery_pb2.FromRouter) -> None:
        streams, decisions = self._streams, self._decisions
        for finished in message.finished:
            if (outbound := streams.get(finished.stream)) is not None:
                decisions.finished(outbound, finished.usage)
        for stream in message.cancel:
            if (outbound := streams.get(stream)) is not None:
                decisions.cancelled(outbound)
        for fenced in message.fenced:
            if (outbound := streams.get(fenced.stream)) is not None:
                decisions.fenced(outbound, fenced.epoch)
        for stream in message.unknown:
            if (outbound := streams.pop(stream, None)) is not None:
                outbound.detach()
