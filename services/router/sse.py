"""Server-sent events from byte templates: per event only the new text is escaped, per wake-up there is one write.

A dialect says how a chunk looks; a ChunkWriter renders one request's events in it; an EventStream sends them, and
comments while nothing happens. It knows nothing of what the text means.
"""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from services.router.exchange import EVENT_STREAM, Exchange
from services.router.generate import ChoiceEnd, Event, TextDelta
from shared.errors import RoadtrainError

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
LINES = b"application/x-ndjson"

encode = msgspec.json.Encoder().encode

LogprobsOf = Callable[[TextDelta], Any]


class Writer(Protocol):
    """Renders the events of one request: ChunkWriter and those like it."""

    @property
    def num_reasoning_tokens(self) -> int:
        """Of the choices that ended."""
        ...

    def render(self, events: list[Event], position: str) -> bytes:
        """The bytes of `events`; `position` is the last one given before them."""
        ...

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The chunk that says what it cost."""
        ...


@dataclass(frozen=True, slots=True)
class Dialect:
    """A chunk's constant parts. `opening`: members of a choice's first chunk, which holds no text; empty for none."""

    object: str
    id_prefix: str
    opening: bytes
    before_text: bytes
    after_text: bytes
    ending: bytes


CHAT = Dialect(
    "chat.completion.chunk",
    "chatcmpl-",
    b'"delta":{"role":"assistant","content":"","refusal":null}',
    b'"delta":{"content":',
    b"}",
    b'"delta":{}',
)
COMPLETION = Dialect("text_completion", "cmpl-", b"", b'"text":', b"", b'"text":""')


@dataclass(frozen=True, slots=True)
class Answer:
    """What all chunks of one answer, and the whole answer, have in common."""

    dialect: Dialect
    rid: str
    created: int
    model: str
    system_fingerprint: str | None
    service_tier: str = ""

    def head(self, object_name: str) -> dict[str, Any]:
        """The members that come first."""
        head = {
            "id": self.dialect.id_prefix + self.rid,
            "object": object_name,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
        }
        return head | {"service_tier": self.service_tier} if self.service_tier else head


class ChunkWriter:
    """Renders the events of one request whose choices are numbered from `first_choice` on.

    logprobs: gives what stands under "logprobs" for a delta, if they were asked for. with_ids: begin each event with the
    position to resume after. begun: choices that need no opening, because the client has had it.
    num_reasoning_tokens: of the choices that ended, where reasoning is told from text.
    """

    num_reasoning_tokens = 0

    def __init__(
        self,
        answer: Answer,
        *,
        first_choice: int = 0,
        include_usage: bool = False,
        with_ids: bool = True,
        logprobs: LogprobsOf | None = None,
        begun: Collection[int] = (),
    ) -> None:
        dialect = answer.dialect
        self._begun = begun
        self._dialect = dialect
        self._first_choice = first_choice
        self._with_ids = with_ids
        self._logprobs = logprobs
        self._head = encode(answer.head(dialect.object))[:-1]
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._after_text = dialect.after_text + b',"logprobs":null,"finish_reason":null}' + self._tail
        self._before_text: dict[int, bytes] = {}

    def render(self, events: list[Event], position: str) -> bytes:
        """The bytes of `events`; `position` is the last one given before them."""
        parts: list[bytes] = []
        for event in events:
            before_text = self._before_text.get(event.choice)
            if before_text is None:
                before_text = self._begin_choice(event.choice, position, parts)
            position = event.position
            if type(event) is ChoiceEnd:
                reason = event.reason.encode() + b'","stop_reason":' + encode(event.stop_reason) + b"}"
                members = self._dialect.ending + b',"logprobs":null,"finish_reason":"' + reason
                parts += (self._id(position), self._choice(event.choice), members, self._tail)
            elif type(event) is TextDelta:
                if self._logprobs is not None:
                    self._with_logprobs(event, self._logprobs(event), parts)
                elif event.text:
                    parts += (self._id(position), before_text, encode(event.text), self._after_text)
        return b"".join(parts)

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The chunk that says what it cost."""
        return b"data: " + self._head + b',"choices":[],"usage":' + encode(usage) + b"}\n\n"

    def _id(self, position: str) -> bytes:
        return b"id: " + position.encode() + b"\n" if self._with_ids else b""

    def _choice(self, choice: int) -> bytes:
        return b"data: " + self._head + b',"choices":[{"index":%d,' % (self._first_choice + choice)

    def _begin_choice(self, choice: int, position: str, parts: list[bytes]) -> bytes:
        prefix = self._choice(choice)
        if self._dialect.opening and choice not in self._begun:
            members = self._dialect.opening + b',"logprobs":null,"finish_reason":null}'
            parts += (self._id(position), prefix, members, self._tail)
        self._before_text[choice] = before_text = prefix + self._dialect.before_text
        return before_text

    def _with_logprobs(self, event: TextDelta, logprobs: Any, parts: list[bytes]) -> None:
        if not event.text and logprobs is None:
            return
        text = self._dialect.before_text + encode(event.text) + self._dialect.after_text
        members = text + b',"logprobs":' + encode(logprobs) + b',"finish_reason":null}'
        parts += (self._id(event.position), self._choice(event.choice), members, self._tail)


class EventStream:
    """Sends events to one client. The answer begins with the first write, so that what fails before is a plain error.

    Among lines of JSON (`media_type` LINES) there is nothing that keeps a connection alive and is not read as one.
    """

    def __init__(self, exchange: Exchange, every_s: float, media_type: bytes = EVENT_STREAM) -> None:
        self._media_type = media_type
        self.begun = False
        self.every_s = every_s
        self._exchange = exchange
        self._beginning = asyncio.Lock()
        self._ended = False
        self._num_writes = 0
        self._num_seen = 0

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """Sends `data`; waits while the client reads too slowly."""
        if not self.begun:
            async with self._beginning:
                await self._begin()
        self._num_writes += 1
        self._ended = last
        await self._exchange.write(data, last=last)

    async def fail(self, error: RoadtrainError) -> None:
        """Ends the stream with an error event; nothing follows it."""
        self._ended = True
        await self._exchange.fail(error)

    async def tick(self) -> None:
        """A comment, if nothing was sent since the last tick."""
        if self._num_writes == self._num_seen and not self._ended and self._media_type == EVENT_STREAM:
            await self.write(KEEP_ALIVE)
        self._num_seen = self._num_writes

    async def _begin(self) -> None:
        if not self.begun:
            await self._exchange.begin_events(self._media_type)
            self.begun = True
