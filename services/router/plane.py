"""Everything below the doors of one router process, wired: queue, tokenizers, deliver server, sequencer, loops.

It knows nothing of HTTP, of the public gRPC door or of what requests say.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
from pathlib import Path

from services.router.decode import Decoder
from services.router.delivery import Delivery
from services.router.generate import Generator
from services.router.generation import Road
from services.router.ledger import Ledger
from services.router.limiter import Limiter
from services.router.loops import Contact, Loop
from services.router.needs import ServedModel
from services.router.resume import Resumer
from services.router.revoke import Revoker
from services.router.sequencer import Sequencer
from services.router.store import Store
from services.router.tokenizer import TokenBytes, Tokenizers
from services.router.workers import Workers
from shared import rpc
from shared.config import Settings
from shared.errors import StartupError, Unavailable
from shared.mtls import read_papers
from shared.pb import delivery_pb2_grpc
from shared.queue.client import Queue
from shared.queue.connection import Client, connect_as
from shared.queue.keys import read_keys
from shared.queue.rate_limits import RateLimits
from shared.queue.registry import ANNOUNCE_EVERY_S, Registry, RouterFacts
from shared.queue.types import Limits
from shared.tasks import end_tasks

REFRESH_S = 1.0
FIRST_LOOK_S = 0.02
RECONCILE_S = 2.0
REAP_S = 0.5
CANCEL_RETRY_S = 0.5
WATCH_S = 1.0
CLOSE_S = 2.5

logger = logging.getLogger(__name__)


class Plane:
    """See needs.Plane. Made by `open_plane`; `close` ends it."""

    def __init__(self, settings: Settings, redis: Client, keys: tuple[bytes, ...]):
        router = settings.router
        self._settings = settings
        self._created = int(time.time())
        self._redis = redis
        self._router_id = router.router_id or f"{socket.gethostname()}-{os.getpid()}"
        self._boot_id = secrets.token_hex(8)
        limits = Limits(
            router.max_queued_requests, router.max_queued_tokens, router.max_tenant_requests, router.max_tenant_tokens
        )
        model = settings.names[0]
        self.contact = Contact()
        self.queue = Queue(redis, model=model, num_shards=settings.queue_shards, limits=limits)
        self.registry = Registry(redis)
        self.store = Store(redis)
        self.workers = Workers(self.registry, model)
        self._papers = papers = read_papers(settings.certs_dir, "router")
        self.tokenizers = Tokenizers(router.tokenizer_addresses, papers.peer("tokenizer") if papers else None)
        self.decoder = Decoder(self.tokenizers)
        self.sequencer = Sequencer()
        self.ledger = Ledger(self.sequencer, self.queue, self._router_id)
        self.revoker = Revoker(self.queue, self._router_id)
        self.resumer = Resumer(
            self.ledger,
            self.queue,
            self.registry,
            self._router_id,
            router.default_deadline_s,
            papers.peer("router") if papers else None,
        )
        self.delivery = Delivery(self.sequencer, self.revoker.broke, self.resumer)
        self.limiter = Limiter(RateLimits(redis))
        self.generator = Generator(
            Road(self.sequencer, self.decoder, self.ledger),
            self.ledger,
            self.resumer,
            self.queue,
            self.tokenizers,
            self.workers,
            self.limiter,
            router_id=self._router_id,
            keys=keys,
            names=settings.names,
            default_deadline_s=router.default_deadline_s,
            parsers=(router.tool_parser, router.reasoning_parser),
        )
        self._loaded = False
        self._server: rpc.Server | None = None
        self._loops: list[Loop] = []
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def vocabulary(self) -> TokenBytes:
        """Token bytes, for log-probabilities. Raises Unavailable before a tokenizer answered."""
        return self.tokenizers.vocabulary

    @property
    def texts(self) -> Tokenizers:
        """Texts to ids and back."""
        return self.tokenizers

    @property
    def model(self) -> ServedModel:
        """What is served now."""
        workers = self.workers
        return ServedModel(self._settings.names, self._created, workers.max_model_len, workers.fingerprint, workers.kinds)

    @property
    def num_protocol_errors(self) -> int:
        """Calls to and from other services that ended because of what was said on them."""
        undecodable = self._server.num_undecodable if self._server is not None else 0
        return undecodable + self.delivery.num_refused + self.resumer.num_refused + self.tokenizers.num_garbled

    @property
    def num_refused_peers(self) -> int:
        """Calls of other services that their certificates are not for."""
        return 0 if self._papers is None else self._papers.num_refused

    def ready(self) -> list[str]:
        """Why a request would be refused now; empty if none would be."""
        reasons = {
            "Redis does not answer": not self._loaded or not self.contact.good,
            "no tokenizer answers": not self.decoder.connected or not self.tokenizers.loaded,
            "no worker is running": not self.workers.any,
        }
        return [reason for reason, holds in reasons.items() if holds]

    def not_ready(self) -> str | None:
        """The same as one line, or None."""
        return "; ".join(self.ready()) or None

    async def open(self) -> None:
        """Opens the Deliver port and starts the loops. Raises StartupError."""
        registration = (delivery_pb2_grpc.add_DeliveryServicer_to_server, self.delivery)
        address = self._settings.router.deliver_address
        self._server = await rpc.serve(address, [registration], setting="--router.deliver-address", guard=self._papers)
        try:
            await self._load()
            # Its ports are shared with other processes: it is sent requests as soon as they are open.
            await self.workers.refresh()
        except Unavailable as error:
            # It may come yet: until then the router says that it is not ready, and why.
            self.contact.lost(error)
        contact, ledger = self.contact, self.ledger
        self._loops = [
            Loop(ANNOUNCE_EVERY_S, self._announce, contact, asyncio.Event()),
            Loop(REFRESH_S, self._look_for_workers, contact, asyncio.Event()),
            Loop(REAP_S, self._reap, contact, asyncio.Event(), jitter=0.5),
            Loop(RECONCILE_S, ledger.reconcile, contact, contact.returned),
            Loop(CANCEL_RETRY_S, ledger.send_cancels, contact, ledger.cancel_wanted),
        ]
        self._tasks = [
            asyncio.create_task(self._watch_readers(), name="watch readers"),
            asyncio.create_task(self._find_worker(), name="find a worker"),
            asyncio.create_task(self._load_vocabulary(), name="load vocabulary"),
            asyncio.create_task(self.decoder.run(), name="decode"),
        ]

    async def close(self) -> None:
        """Ends what is left of open requests and every connection."""
        for loop in self._loops:
            loop.stop()
        if self._loops:
            await asyncio.wait([loop.task for loop in self._loops], timeout=CLOSE_S)
        await end_tasks([*self._tasks, *(loop.task for loop in self._loops)])
        await self.limiter.close()
        await self.revoker.close()
        await self.ledger.close()
        if self._loaded and self.contact.good:
            try:
                await self.registry.withdraw_router(self._router_id)
            except Unavailable:
                logger.info("could not withdraw from the registry; the entry expires by itself")
        if self._server is not None:
            await self._server.stop(0)
        await self.tokenizers.close()
        await self._redis.aclose()

    async def _load(self) -> None:
        await self.queue.load()
        self._loaded = True
        self.contact.seen()

    async def _announce(self) -> None:
        if not self._loaded:
            await self._load()
        if self._server is not None:
            await self.registry.announce_router(RouterFacts(self._router_id, self._boot_id, self._server.address))

    async def _look_for_workers(self) -> None:
        await self.workers.refresh()
        self.ledger.end_unmatched(self.workers.fingerprints)

    async def _reap(self) -> None:
        if self._loaded and (await self.queue.reap()).dead:
            # Their clients wait for the news.
            self.contact.returned.set()

    async def _watch_readers(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            for generation in self.ledger.open_generations():
                generation.check_reader()

    async def _find_worker(self) -> None:
        """Until there is one for the first time, requests are refused: looks more often than later."""
        while not self.workers.any:
            await asyncio.sleep(FIRST_LOOK_S)
            with contextlib.suppress(Unavailable):
                await self.workers.refresh()

    async def _load_vocabulary(self) -> None:
        while True:
            try:
                await self.tokenizers.load_vocabulary()
            except Unavailable:
                await asyncio.sleep(WATCH_S / 4)
            else:
                return


async def open_plane(settings: Settings) -> Plane:
    """The plane of this router, open for workers. Raises StartupError: no address, no secret, a port in use, an old Redis."""
    if settings.redis_url is None or settings.secret_file is None:
        raise StartupError("the router needs --redis-url and --secret-file")
    keys = read_keys(Path(settings.secret_file))
    plane = Plane(settings, connect_as(settings), keys)
    try:
        await plane.open()
    except BaseException:
        await plane.close()
        raise
    return plane
