"""One accepted request as its client sees it: text in order, ends, an error, a cancel.

It knows nothing of HTTP or gRPC, nor of which worker computes.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Protocol

from services.router import position as positions
from services.router.choice import ChoiceText, DecodeRule, Event
from services.router.decode import Decoder
from services.router.follow import Source
from services.router.sequencer import ChoiceLog, Held, Sequencer
from shared.errors import DeadlineExceeded, InternalError, InvalidRequest, RequestTimeout, RoadtrainError, mapped
from shared.pb import delivery_pb2, types_pb2

CancelReason = Literal["client", "disconnect"]

# A client that leaves this many accepted tokens unread has its sequence paused; 60 s without reading end it.
PAUSE_TOKENS = 2048
STALL_S = 60.0


class Ending(Enum):
    """How a request stopped being owed; decides what its worker and the queue are told."""

    GIVEN = "given"  # the client was given everything
    CLIENT = "client"  # asked to end, or out of time: final
    DISCONNECT = "disconnect"  # nobody reads: may be taken up again
    FAILED = "failed"  # its worker ended it with an error
    DEAD = "dead"  # the queue ended it
    RELEASED = "released"  # its client is attached elsewhere, or was never accepted here


class Ledger(Protocol):
    """Keeps what is owed; see ledger.py."""

    def retire(self, generation: "Generation", ending: Ending) -> None:
        """The generation is over: its worker and the queue hear of it."""

    async def confirmed(self, rid: str) -> bool:
        """Whether the cancel of rid was the one that ended it, once the queue has said so."""


@dataclass(frozen=True, slots=True)
class Road:
    """What every generation of a router shares."""

    sequencer: Sequencer
    decoder: Decoder
    ledger: Ledger


@dataclass(frozen=True, slots=True)
class Facts:
    """What was settled when a request was accepted. `deadline_s` counts from then; prompt_logprobs: they are wanted.

    after: how far its client has got, if it came back for the rest. reading: see types.proto; None: all is content.
    """

    model: str
    tenant: str
    created: int
    prompt_token_ids: list[int]
    rule: DecodeRule
    deadline_s: float
    prompt_logprobs: bool
    after: positions.Position | None = None
    reading: types_pb2.Reading | None = None


class Generation:
    """One accepted request. Exactly one task may iterate `events()`; `cancel` may be called from any, any number of times.

    `created` is in seconds since 1970. Whoever holds one must either exhaust `events()` or call `cancel`.
    """

    def __init__(self, held: Held, facts: Facts, road: Road):
        loop = asyncio.get_running_loop()
        self.rid = held.rid
        self.model = facts.model
        self.tenant = facts.tenant
        self.created = facts.created
        self.prompt_token_ids = facts.prompt_token_ids
        self.reading = facts.reading
        self.waits_for_prompt = facts.prompt_logprobs
        self.skips_special = facts.rule.skip_special
        self._hidden_token_ids = facts.rule.hidden_token_ids
        self.is_resumed = facts.after is not None
        self.held = held
        self.source = Source(held)
        self._road = road
        # What the client says it has, until what is here was found to agree.
        self._after = facts.after
        # Set once its own reader has gone while others still follow.
        self._left: RoadtrainError | None = None
        self.draining: asyncio.Task[None] | None = None
        self._settle: Callable[[int], None] | None = None
        self._loop = loop
        self._choices = [ChoiceText(log, facts.rule, self) for log in held.choices]
        self._offered: list[ChoiceText] = []
        self._num_open = len(self._choices)
        # An asyncio.Event would do; a bare future costs half of it, once per token.
        self._ready = False
        self._waiter: asyncio.Future[None] | None = None
        self._error: RoadtrainError | None = None
        self._over = False
        # Since when the reader has had something in hand; None while it waits for us.
        self._reading_since: float | None = loop.time()
        self._deadline_s = facts.deadline_s
        self._deadline = loop.call_later(facts.deadline_s, self._expire)
        # Where the prompt's log-probabilities are wanted its text waits for them: they come before the first token.
        if facts.rule.echo_token_ids and not facts.prompt_logprobs:
            for choice in self._choices:
                road.decoder.push(choice)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt as rendered."""
        return len(self.prompt_token_ids)

    @property
    def prompt_logprobs(self) -> types_pb2.Logprobs | None:
        """Rows for the prompt's tokens from the second on, if asked for; there before the first event."""
        return self._prompt_logprobs if self._over else self.held.prompt_logprobs

    _prompt_logprobs: types_pb2.Logprobs | None = None

    @property
    def over(self) -> bool:
        """It has ended, one way or another."""
        return self._over

    @property
    def usage(self) -> types_pb2.Usage:
        """What it cost so far; final once `events()` ended. Output counts what the client was given."""
        return types_pb2.Usage(
            num_prompt_tokens=len(self.prompt_token_ids),
            num_cached_tokens=self.held.num_cached_tokens,
            num_output_tokens=sum(choice.num_given for choice in self._choices),
        )

    async def events(self) -> AsyncIterator[list[Event]]:
        """Everything that happened since the last list, coalesced: at most one TextDelta per choice and list.

        Ends after every choice's ChoiceEnd. Raises RoadtrainError if the request failed: DeadlineExceeded, Quarantined,
        InternalError, Unavailable, or InvalidRequest (code "request_cancelled") if its client ended it elsewhere.
        Coming back for more tells that the last list was written: a slow caller is buffered for, then paused,
        then cancelled after 60 s.
        """
        try:
            while batch := await self._next():
                if self._left is not None:
                    raise self._left
                self._reading_since = self._loop.time()
                yield batch
                if self._left is not None:
                    raise self._left
        finally:
            self._fail(_cancelled(), Ending.DISCONNECT)

    async def _next(self) -> list[Event]:
        """What comes next, at least one event; empty at the end."""
        while self._num_open:
            self._reading_since = None
            if not self._ready:
                self._waiter = self._loop.create_future()
                await self._waiter
            self._ready = False
            if self._error is not None:
                raise self._error
            if batch := self._collect():
                return batch
        if not self._over:
            self._retire(Ending.GIVEN)
        return []

    async def _drain(self) -> None:
        """Reads for those who follow, after its own reader has gone; ends it when they have gone, too."""
        try:
            while self.source.watchers and await self._next():
                pass
        except RoadtrainError:
            return
        self._fail(_cancelled(), Ending.DISCONNECT)

    async def cancel(self, why: CancelReason) -> bool:
        """End it now; True if this call ended it. "disconnect": nobody listens. "client": it was asked for, and is final.

        "disconnect" returns at once and never raises. "client" returns when the queue has confirmed it, and raises
        Unavailable if that takes longer than 2 s (it is retried until it is through).
        """
        ended = self._fail(_cancelled(), Ending.CLIENT if why == "client" else Ending.DISCONNECT)
        if why == "client" and ended:
            return await self._road.ledger.confirmed(self.rid)
        return ended

    def end(self, error: RoadtrainError, ending: Ending) -> None:
        """Somebody else than its client ended it: `events()` raises `error`."""
        self._fail(error, ending)

    def when_over(self, settle: Callable[[int], None]) -> None:
        """`settle` is told the tokens of prompt and output once it has ended, unless it goes on elsewhere."""
        self._settle = settle
        if self._over:
            settle(self._num_used())

    def _num_used(self) -> int:
        return len(self.prompt_token_ids) + max(self.held.num_tokens, sum(choice.num_given for choice in self._choices))

    def check_reader(self) -> None:
        """Ends it if its reader has not come back for too long; to be called now and then."""
        if self._reading_since is not None and self._loop.time() - self._reading_since > STALL_S:
            self._fail(RequestTimeout(f"Nothing was read for {STALL_S:.0f} s; the request was cancelled."), Ending.DISCONNECT)

    def position(self) -> str:
        """Event id after what all choices have given: `rid:i0.i1…:h`, h a hash of the ids in hexadecimal."""
        choices = self._choices
        if self._after is not None:
            return f"{self.rid}:{'.'.join(map(str, self._after.counts))}:{self._after.crc:08x}"
        if len(choices) == 1:
            return f"{self.rid}:{choices[0].num_given}:{choices[0].crc:08x}"
        return positions.write(self.rid, [choice.num_given for choice in choices], [choice.crc for choice in choices])

    @property
    def has_logprobs(self) -> bool:
        """Log-probabilities were asked for."""
        return self._choices[0].log.logprobs is not None

    def begun_logprobs(self, index: int) -> types_pb2.Logprobs | None:
        """Rows of a choice's tokens that the client has from elsewhere; None if there are none."""
        log = self._choices[index].log
        return log.logprobs.rows(0, log.sent) if log.logprobs is not None and log.sent else None

    def begun_token_ids(self, index: int) -> list[int]:
        """A choice's tokens of which the client has what was made from elsewhere; there once it has an event."""
        log = self._choices[index].log
        token_ids = log.token_ids[: log.sent]
        # What ended the choice is not shown, and what it was made of is not read.
        return token_ids[:-1] if token_ids and token_ids[-1] in self._hidden_token_ids else token_ids

    @property
    def resumed(self) -> frozenset[int]:
        """Choices whose beginning the client has from elsewhere."""
        return frozenset(choice.log.index for choice in self._choices if choice.log.sent)

    def push(self, choice: ChoiceText) -> None:
        """See choice.Owner."""
        self._road.decoder.push(choice)
        if self.source.watchers:
            self.source.tell()

    def offer(self, choice: ChoiceText) -> None:
        """See choice.Owner."""
        if not choice.offered:
            choice.offered = True
            self._offered.append(choice)
            self._wake()
        elif self._after is not None:
            self._wake()
        if self._reading_since is not None and not self.held.paused and self._num_unread() > PAUSE_TOKENS:
            self._road.sequencer.pause(self.held, True)

    def stop(self, log: ChoiceLog, num_tokens: int) -> None:
        """See choice.Owner."""
        self._road.sequencer.stop(log, num_tokens)
        self.source.tell()

    def told(self) -> None:
        """See choice.Owner."""
        self.source.tell()

    def failed(self, finish: delivery_pb2.Finish) -> None:
        """See choice.Owner."""
        if finish.reason == types_pb2.FINISH_REASON_CANCELLED:
            self._fail(_cancelled(), Ending.FAILED)
        else:
            self._fail(_as_told(finish.error), Ending.FAILED)

    def undecodable(self) -> None:
        """See choice.Owner."""
        message = "The model's tokens could not be turned into text; it has been logged."
        self._fail(InternalError(message), Ending.DISCONNECT)

    def _wake(self) -> None:
        self._ready = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _num_unread(self) -> int:
        return sum(len(choice.log.token_ids) - choice.num_given for choice in self._choices)

    def _agrees(self) -> bool:
        """Whether what is here begins with what the client has; fails if it does not, waits while there is too little."""
        logs = [choice.log for choice in self._choices]
        if any(len(log.token_ids) < log.sent and not log.ended for log in logs):
            return False
        if self._after is not None and not self._after.agrees([log.token_ids for log in logs]):
            message = "This answer cannot be continued: made again, its beginning differs from what you have. Ask anew."
            self._fail(InternalError(message, code="resume_mismatch"), Ending.FAILED)
            return False
        for choice in self._choices:
            choice.skip_sent()
        self._after = None
        return True

    def _collect(self) -> list[Event]:
        if self._after is not None and not self._agrees():
            return []
        offered, self._offered = self._offered, []
        events: list[Event] = []
        for choice in offered:
            choice.offered = False
            choice.collect(events)
            self._num_open -= choice.over
        if self.held.paused:
            self._road.sequencer.pause(self.held, False)
        return events

    def _expire(self) -> None:
        message = f"The request was not done within its deadline of {self._deadline_s:g} s."
        self._fail(DeadlineExceeded(message), Ending.CLIENT)

    def _fail(self, error: RoadtrainError, ending: Ending) -> bool:
        """Whether this was what ended it."""
        if self._over:
            return False
        if ending is Ending.DISCONNECT and self.source.watchers:
            return self._leave(error)
        self._error = error
        for choice in self._choices:
            self._road.decoder.forget(choice)
        self._retire(ending)
        self._wake()
        return True

    def _leave(self, error: RoadtrainError) -> bool:
        """Its own reader goes; it goes on for those who follow. Whether that is news."""
        if self._left is not None:
            return False
        self._left = error
        self.draining = self._loop.create_task(self._drain(), name="drain")
        return True

    def _retire(self, ending: Ending) -> None:
        self._over = True
        final = ending in (Ending.CLIENT, Ending.FAILED, Ending.DEAD)
        self.source.close(self._error if final else None)
        self._deadline.cancel()
        self._prompt_logprobs = self.held.prompt_logprobs
        if self._settle is not None and ending is not Ending.RELEASED:
            self._settle(self._num_used())
        self._road.ledger.retire(self, ending)


def _as_told(told: types_pb2.Error) -> RoadtrainError:
    """A worker's error; what it says is the request's fault stays so."""
    message = told.message or "The model failed on this request; it has been logged."
    of_request = told.type == mapped(InvalidRequest("")).type
    return (InvalidRequest if of_request else InternalError)(message, param=told.param or None, code=told.code or None)


def _cancelled() -> RoadtrainError:
    return InvalidRequest("The request was cancelled.", code="request_cancelled")
