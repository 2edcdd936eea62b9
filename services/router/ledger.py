"""What this router owes and what it has ended: the memory behind re-puts, cancels and tombstones.

A cancel goes to the worker at once and to the queue until it answers. It knows nothing of text or of connections.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Set
from dataclasses import dataclass, field, replace

from services.router.archive import Archive
from services.router.generation import Ending, Generation
from services.router.reconcile import Act, View, decide, ended_error, view
from services.router.sequencer import Fate, Held, Sequencer
from shared import crash
from shared.errors import InvalidRequest, NotFound, RoadtrainError, Unavailable
from shared.queue.client import Queue
from shared.queue.types import Answer, CancelReason, Known, NewRequest, Owner, Record
from shared.tasks import end_tasks

TOMBSTONE_S = 300.0
CONFIRM_S = 2.0
READ_AT_ONCE = 500

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Owed:
    """One request whose client is not done: everything to put it again. `deadline` is in seconds of the monotonic clock."""

    generation: Generation
    request: NewRequest
    deadline: float
    crashes: int = 0

    def again(self) -> NewRequest:
        """The request with the time that is left."""
        return replace(self.request, deadline_ms=max(1, int((self.deadline - time.monotonic()) * 1000)))


@dataclass(slots=True)
class PendingCancel:
    """A cancel the queue has not answered. attach 0: the put's answer never came, the record tells."""

    tenant: str
    attach: int
    why: CancelReason
    answer: asyncio.Future[Answer | None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Ledger:
    """Everything owed by one router, and every tombstone."""

    def __init__(self, sequencer: Sequencer, queue: Queue, router_id: str):
        self.owed: dict[str, Owed] = {}
        self.cancels: dict[str, PendingCancel] = {}
        self.cancel_wanted = asyncio.Event()
        self._sequencer = sequencer
        self._queue = queue
        self._router_id = router_id
        self.archive = Archive()
        # Sees to an entry whose record names a newer connection; the resumer follows it.
        self.moved: Callable[[Owed], None] = lambda entry: entry.generation.end(_superseded(), Ending.RELEASED)
        # Generations whose tokens come from another that this router or another one owes, and what brings them.
        self.feeds: dict[Generation, asyncio.Task[None]] = {}
        self._tombstones: dict[str, float] = {}
        # Cancelled here, and not yet seen to have ended in the queue.
        self._unsettled: dict[str, Held] = {}

    def add(self, entry: Owed) -> None:
        """From now on it is owed; an earlier connection of the same rid is let go."""
        rid = entry.generation.rid
        earlier = self.owed.get(rid)
        if earlier is not None:
            earlier.generation.end(_superseded(), Ending.RELEASED)
        self.cancels.pop(rid, None)
        self._unsettled.pop(rid, None)
        self._tombstones.pop(rid, None)
        self.archive.drop(rid)
        self.owed[rid] = entry
        self._sequencer.hold(entry.generation.held)

    def open_generations(self) -> list[Generation]:
        """All that have not ended, owed here or elsewhere."""
        return [*(entry.generation for entry in self.owed.values()), *self.feeds]

    async def close(self) -> None:
        """Follows nobody any more."""
        feeds, self.feeds = list(self.feeds.values()), {}
        drains = [task for entry in self.owed.values() if (task := entry.generation.draining) is not None]
        await end_tasks([*feeds, *drains])

    def let_go(self, generation: Generation) -> None:
        """It is owed by another router: from here on its tokens come from there."""
        entry = self.owed.get(generation.rid)
        if entry is not None and entry.generation is generation:
            del self.owed[generation.rid]
            self._sequencer.forget(generation.held)

    def give_back(self, generation: Generation) -> None:
        """It was to be owed here, and is not for sure; the task that looks for its tokens goes on looking."""
        self.let_go(generation)
        task = asyncio.current_task()
        if task is not None and not generation.over:
            self.feeds[generation] = task

    def retire(self, generation: Generation, ending: Ending) -> None:
        """See generation.Ledger."""
        held = generation.held
        entry = self.owed.get(generation.rid)
        if entry is None or entry.generation is not generation:
            if (feed := self.feeds.pop(generation, None)) is not None:
                feed.cancel()
            return
        del self.owed[generation.rid]
        if ending is Ending.GIVEN:
            self.archive.keep(entry.request, generation.source)
        if ending is Ending.RELEASED:
            self._sequencer.forget(held)
            return
        self._tombstones.pop(held.rid, None)
        self._tombstones[held.rid] = time.monotonic() + TOMBSTONE_S
        if ending in (Ending.GIVEN, Ending.FAILED):
            self._sequencer.finish(held, generation.usage)
            return
        self._sequencer.cancel(held)
        crash.point("router.cancelled")
        if ending is not Ending.DEAD:
            why: CancelReason = "client" if ending is Ending.CLIENT else "disconnect"
            self._unsettled[held.rid] = held
            self._want_cancel(held.rid, PendingCancel(generation.tenant, held.attach, why))

    def refuse(self, generation: Generation, error: RoadtrainError) -> None:
        """The queue would not have it: nothing to cancel."""
        generation.end(error, Ending.RELEASED)

    async def confirmed(self, rid: str) -> bool:
        """See generation.Ledger."""
        pending = self.cancels.get(rid)
        if pending is None:
            return True
        try:
            async with asyncio.timeout(CONFIRM_S):
                answer = await asyncio.shield(pending.answer)
        except TimeoutError:
            raise Unavailable(
                "The cancel is under way, but the queue has not confirmed it yet.", code="queue_unavailable", retry_after_s=1.0
            ) from None
        return answer is not None and answer.verdict == "ok"

    async def send_cancels(self) -> None:
        """Tells the queue of every cancel it has not answered. Raises Unavailable if it cannot be asked."""
        for rid, pending in list(self.cancels.items()):
            answer = await self._send_cancel(rid, pending)
            if self.cancels.get(rid) is pending:
                del self.cancels[rid]
            if not pending.answer.done():
                pending.answer.set_result(answer)

    async def _send_cancel(self, rid: str, pending: PendingCancel) -> Answer | None:
        attach = pending.attach
        if not attach and pending.why == "disconnect":
            record = (await self._queue.read([rid]))[rid]
            if record is None or record.router != self._router_id:
                return None
            attach = record.attach
        try:
            return await self._queue.cancel(rid, tenant=pending.tenant, router_id=self._router_id, attach=attach, why=pending.why)
        except NotFound:
            return None

    async def reconcile(self) -> None:
        """Compares everything held with Redis and repairs what differs. Raises Unavailable if it cannot be asked."""
        self._bury_old()
        self.archive.expire()
        rids = [rid for rid, entry in self.owed.items() if entry.generation.held.attach] + list(self._unsettled)
        for start in range(0, len(rids), READ_AT_ONCE):
            records = await self._queue.read(rids[start : start + READ_AT_ONCE])
            for rid, record in records.items():
                if (entry := self.owed.get(rid)) is not None:
                    await self._repair(entry, record)
                elif (held := self._unsettled.get(rid)) is not None and rid not in self.cancels:
                    self._settle(held, record)

    def end_unmatched(self, fingerprints: Set[str]) -> None:
        """Ends what was handed on for its numerics when no worker is left that has them, but others are."""
        for entry in list(self.owed.values()):
            held = entry.generation.held
            if held.declined and fingerprints and held.fingerprint not in fingerprints:
                logger.warning("no worker has its numerics any more", extra={"rid": held.rid, "wanted": held.fingerprint})
                entry.generation.end(_unmatched(), Ending.FAILED)

    def _settle(self, held: Held, record: Record | None) -> None:
        mine = View(self._router_id, held.attach, owes_ids=False, cancelled=True)
        if decide(mine, record) is Act.CANCEL and record is not None:
            self._want_cancel(held.rid, PendingCancel(record.tenant, record.attach, "disconnect"))
        else:
            self._unsettled.pop(held.rid, None)

    async def _repair(self, entry: Owed, record: Record | None) -> None:
        generation, held = entry.generation, entry.generation.held
        if record is not None:
            entry.crashes = record.crashes
        match decide(view(held, self._router_id, cancelled=False), record):
            case Act.PUT:
                logger.warning("Redis forgot a request; it is put back", extra={"rid": held.rid})
                await self._queue.put(entry.again(), attach=held.attach, known=_known(held, entry.crashes))
            case Act.ADOPT:
                await self._adopt(entry, held.attach)
            case Act.ADOPT_FRESH:
                await self._adopt(entry, None)
            case Act.SUPERSEDED:
                self.moved(entry)
            case Act.ENDED if record is not None:
                generation.end(ended_error(record.reason), Ending.DEAD)

    async def _adopt(self, entry: Owed, attach: int | None) -> None:
        held = entry.generation.held
        answer = await self._queue.adopt(
            held.rid, tenant=entry.generation.tenant, router_id=self._router_id, attach=attach, request=entry.again(),
            known=_known(held, entry.crashes),
        )  # fmt: skip
        self.adopted(entry, answer)

    def adopted(self, entry: Owed, answer: Answer) -> None:
        """Takes the answer of an adopt. A request that ended meanwhile is told so."""
        match answer.verdict:
            case "ok" | "exists":
                entry.generation.held.attach = answer.attach
            case "superseded":
                self.moved(entry)
            case _:
                entry.generation.end(ended_error(answer.reason), Ending.DEAD)

    def _want_cancel(self, rid: str, pending: PendingCancel) -> None:
        self.cancels[rid] = pending
        self.cancel_wanted.set()

    def _bury_old(self) -> None:
        now = time.monotonic()
        for rid, until in list(self._tombstones.items()):
            if until > now:
                break
            del self._tombstones[rid]
            self._unsettled.pop(rid, None)
            held = self._sequencer.held.get(rid)
            if held is not None and held.fate is not Fate.OWED:
                self._sequencer.forget(held)


def _known(held: Held, crashes: int) -> Known:
    bound = held.bound
    if bound is None:
        return Known(crashes=crashes, progress=held.num_tokens)
    owner = Owner.parse(bound.link.owner) if held.live is not None else None
    return Known(owner=owner, epoch=bound.epoch, crashes=crashes, progress=held.num_tokens)


def _unmatched() -> RoadtrainError:
    text = "The workers that began this answer are gone, and those that are left would go on with other numbers; send it again."
    return Unavailable(text, code="numerics_changed", retry_after_s=1.0)


def _superseded() -> RoadtrainError:
    return InvalidRequest("This stream was taken up by a newer connection of its client.", code="stream_superseded")
