"""Token ids to text over one Decode stream: what readers have accepted goes up, their text and stop strings come back.

Everything accepted since the last message goes into the next one, so a message of a worker makes at most one message
here. When the stream breaks, or is silent, another replica is asked to rebuild every reader's state from its ids.

Most tokens are plain ASCII and most requests name no stop string: their text is known from the vocabulary, and such a
reader goes to the tokenizer only at a token that is not plain, until nothing is held back any more. One token at a time,
that road costs about as much as computing a small model's token does.
It knows nothing of workers, of events or of clients.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol

import grpc

from services.router.tokenizer import Replica, Tokenizers, backoff
from shared.pb import tokenizer_pb2
from shared.rpc import Garbled, one_line, whole
from shared.tasks import end_tasks

# A question that is not answered for so many ticks goes to another replica; for twice as many if that changed nothing.
TICK_S = 0.05
SILENT_TICKS, MAX_SILENT_TICKS = 10, 160

logger = logging.getLogger(__name__)


class Reader(Protocol):
    """One choice being decoded. The decoder keeps `number` (0: not open now, -1: forgotten) and `queued`.

    may_be_plain: its text is that of its tokens in a row, if they are plain. plain: it needs no tokenizer now.
    num_based: tokens before the place where its decode stream begins; replies count from there.
    """

    number: int
    queued: bool
    may_be_plain: bool
    plain: bool
    num_taken: int
    num_based: int

    def opening(self) -> tokenizer_pb2.OpenDecode:
        """Everything that rebuilds its state: ids taken so far and how much of their text has arrived."""

    def take(self) -> Sequence[int]:
        """Ids to decode next; they count as taken."""

    @property
    def exhausted(self) -> bool:
        """No more ids will come, and all were taken."""

    def rebase(self) -> None:
        """The text of all that was taken has wholly been given: a decode stream may begin here."""

    def decoded(self, text: str, num_tokens: int) -> None:
        """New text arrived; num_tokens are wholly given with it."""

    def stopped(self, num_tokens: int, stop_index: int) -> None:
        """Its text ended with a stop string."""

    def drained(self) -> None:
        """All its text has arrived."""

    def refused(self) -> None:
        """The tokenizer cannot decode it."""


class Decoder:
    """The router's one Decode stream."""

    def __init__(self, tokenizers: Tokenizers):
        self._tokenizers = tokenizers
        self._readers: dict[int, Reader] = {}
        self._queue: list[Reader] = []
        self._plain: list[Reader] = []
        self._closing: list[int] = []
        # Readers that each unanswered request flushed, oldest first: replies come in the order of requests.
        self._unanswered: deque[list[Reader]] = deque()
        self._last_number = 0
        self._wake = asyncio.Event()
        self._answered = False
        self._silent_ticks = SILENT_TICKS
        self.connected = False

    def push(self, reader: Reader) -> None:
        """The reader has something to take, or has been exhausted."""
        if reader.queued:
            return
        reader.queued = True
        if not reader.plain:
            self._queue.append(reader)
            self._wake.set()
            return
        if not self._plain:
            asyncio.get_running_loop().call_soon(self._give_plain)
        self._plain.append(reader)

    def forget(self, reader: Reader) -> None:
        """Nobody wants its text any more."""
        if self._readers.pop(reader.number, None) is not None:
            self._closing.append(reader.number)
            self._wake.set()
        reader.number = -1
        reader.queued = True

    def _give_plain(self) -> None:
        """Gives readers their text at once, as long as it is plain."""
        readers, self._plain = self._plain, []
        vocabulary = self._tokenizers.vocabulary if self._tokenizers.loaded else None
        for reader in readers:
            if reader.number < 0:
                continue
            reader.queued = False
            token_ids = reader.take() if vocabulary is not None else ()
            text = vocabulary.plain_text(token_ids) if vocabulary is not None else None
            if text is None:
                # What was just taken counts as taken before: opening it brings that text, too.
                reader.plain = False
                self.push(reader)
                continue
            if token_ids:
                reader.decoded(text, reader.num_taken)
                reader.rebase()
            if reader.exhausted:
                reader.drained()

    async def run(self) -> None:
        """Keeps a stream open until cancelled."""
        failed: Replica | None = None
        attempt = 0
        while True:
            replica = self._tokenizers.next_replica(failed)
            call = None
            self._answered = False
            try:
                await self._tokenizers.check(replica)
                call = replica.stub.Decode()
                self.connected = True
                self._reopen()
                await _until_one_fails(self._write(call), self._read(call), self._listen())
            except Exception as error:
                attempt = 0 if self._answered else attempt + 1
                self._tokenizers.num_garbled += isinstance(error, Garbled)
                # One that never answered may still be starting; readiness says so, once, without a line per attempt.
                level = logging.WARNING if self._answered else logging.DEBUG
                logger.log(level, "the decode stream broke", extra={"address": replica.address, "cause": one_line(error)})
            finally:
                self.connected = False
                if call is not None:
                    call.cancel()
            failed = replica
            await backoff(attempt)

    def _reopen(self) -> None:
        """Every reader begins anew on the stream that is about to open."""
        readers = list(self._readers.values())
        self._readers.clear()
        self._unanswered.clear()
        self._closing.clear()
        for reader in readers:
            reader.number = 0
            self.push(reader)
        # For what was queued while the last stream had not answered.
        self._wake.set()

    async def _listen(self) -> None:
        """Raises once the replica is silent for too long. Counts ticks: a stop of this process is no silence of theirs."""
        num_ticks = 0
        waits_for: list[Reader] | None = None
        while True:
            await asyncio.sleep(TICK_S)
            oldest = self._unanswered[0] if self._unanswered else None
            num_ticks = num_ticks + 1 if oldest is waits_for and oldest is not None else 0
            waits_for = oldest
            if num_ticks >= self._silent_ticks and not self._tokenizers.is_one:
                self._silent_ticks = min(MAX_SILENT_TICKS, 2 * self._silent_ticks)
                raise _Silent

    async def _write(self, call: Any) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._unanswered:
                # The tokenizer is behind: what is accepted until it answers goes up together.
                continue
            request = self._next_request()
            if request is not None:
                await call.write(request)

    def _next_request(self) -> tokenizer_pb2.DecodeRequest | None:
        queue, self._queue = self._queue, []
        if not queue and not self._closing:
            return None
        streams: list[int] = []
        counts: list[int] = []
        token_ids: list[int] = []
        flushed: list[Reader] = []
        request = tokenizer_pb2.DecodeRequest(close=self._closing)
        self._closing = []
        for reader in queue:
            if reader.number < 0:
                continue
            reader.queued = False
            if reader.plain:
                self.push(reader)
                continue
            if not reader.number:
                self._open(reader, request)
            taken = reader.take()
            if taken:
                streams.append(reader.number)
                counts.append(len(taken))
                token_ids += taken
            if reader.exhausted:
                flushed.append(reader)
                request.flush.append(reader.number)
                request.close.append(reader.number)
        if not (request.open or streams or flushed or request.close):
            return None
        request.stream.extend(streams)
        request.count.extend(counts)
        request.token_ids.extend(token_ids)
        self._unanswered.append(flushed)
        return request

    def _open(self, reader: Reader, request: tokenizer_pb2.DecodeRequest) -> None:
        self._last_number += 1
        opening = reader.opening()
        opening.stream = self._last_number
        request.open.append(opening)
        reader.number = self._last_number
        self._readers[reader.number] = reader

    async def _read(self, call: Any) -> None:
        while True:
            reply = whole(await call.read())
            if reply is grpc.aio.EOF:
                raise _Closed
            self._answered = True
            self._silent_ticks = SILENT_TICKS
            self._deliver(reply)

    def _deliver(self, reply: tokenizer_pb2.DecodeReply) -> None:
        flushed = self._unanswered.popleft()
        self._wake.set()
        readers = self._readers
        for number, text, num_tokens in zip(reply.stream, reply.text, reply.num_tokens, strict=True):
            # A reader that was forgotten meanwhile may still be answered.
            if (reader := readers.get(number)) is not None:
                reader.decoded(text, reader.num_based + num_tokens)
                if reader.may_be_plain and reader.num_based + num_tokens == reader.num_taken and not reader.exhausted:
                    del readers[number]
                    self._closing.append(number)
                    reader.number, reader.plain = 0, True
                    reader.rebase()
        for stop in reply.stopped:
            if (reader := readers.get(stop.stream)) is not None:
                self.forget(reader)
                reader.stopped(stop.num_tokens, stop.stop_index)
        for number in reply.refused:
            if (reader := readers.get(number)) is not None:
                reader.refused()
        for reader in flushed:
            if readers.pop(reader.number, None) is not None:
                reader.drained()


async def _until_one_fails(*works: Coroutine[Any, Any, None]) -> None:
    """Runs them beside each other and raises what the first to fail raised.

    A TaskGroup forgets, before Python 3.13, that it was cancelled where one of its tasks fails in the same moment.
    """
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await end_tasks(tasks)


class _Silent(Exception):
    """The tokenizer does not answer."""


class _Closed(Exception):
    """The tokenizer ended the stream."""
