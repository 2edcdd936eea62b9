"""Whose tokens count: the router's side of protocol §4, one record per request it holds.

A token is accepted only from the assignment a request is bound to, at exactly the next index of its choice. Everything
said on a worker's stream is answered into that stream's next FromRouter. Pure: no clock, no I/O, no tasks.
It knows nothing of Redis, of text or of clients.
"""

import sys
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from shared import crash
from shared.pb import delivery_pb2, types_pb2

PROTOCOL_VERSION = 1

FromRouter = delivery_pb2.FromRouter


class ProtocolError(Exception):
    """A worker said what no worker may say: its stream ends."""


class Sink(Protocol):
    """Who reads one choice."""

    def grew(self) -> None:
        """Ids were accepted, or the choice's end was."""


class Fate(Enum):
    """How the router stands to a request it holds."""

    OWED = "owed"  # the client has not been given everything
    FINISHED = "finished"  # tombstone: it has
    CANCELLED = "cancelled"  # tombstone: it is gone, or asked for the end


@dataclass(slots=True)
class LogprobColumns:
    """Log-probabilities of a choice's tokens: `width` entries per token, row by row."""

    width: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def rows(self, start: int, stop: int) -> types_pb2.Logprobs:
        """Rows start to stop as a message."""
        first, last = start * self.width, stop * self.width
        return types_pb2.Logprobs(width=self.width, token_ids=self.token_ids[first:last], logprobs=self.logprobs[first:last])

    def cut(self, num_tokens: int) -> None:
        """Forgets the rows from num_tokens on."""
        del self.token_ids[num_tokens * self.width :]
        del self.logprobs[num_tokens * self.width :]


@dataclass(slots=True, eq=False)
class ChoiceLog:
    """What was accepted of one choice. `token_ids` are all kept: decoding and the next owner need them.

    `finish` is the end as its worker told it, `stopped` is set once a stop string ended it first. `sent` is how many
    tokens the client already had when it came back here: they are accepted again, and not given again.
    """

    held: "Held"
    index: int
    logprobs: LogprobColumns | None = None
    sent: int = 0
    token_ids: list[int] = field(default_factory=list)
    finish: delivery_pb2.Finish | None = None
    stopped: bool = False
    sink: Sink | None = None

    @property
    def ended(self) -> bool:
        """No id is accepted any more."""
        return self.stopped or self.finish is not None


@dataclass(slots=True, eq=False)
class Binding:
    """One assignment's stream number on one worker's connection."""

    held: "Held"
    epoch: int
    link: "Link"
    stream: int

    def same_author(self, other: "Binding") -> bool:
        """Whether both are the same assignment, perhaps over two connections."""
        return self.epoch == other.epoch and self.link.owner == other.link.owner


@dataclass(slots=True, eq=False)
class Link:
    """One worker's connection: its live stream numbers, and the answer being written for it."""

    owner: str
    fingerprint: str
    wake: Callable[[], None]
    streams: dict[int, Binding] = field(default_factory=dict)
    out: FromRouter = field(default_factory=FromRouter)
    closed: bool = False

    @property
    def num_acks(self) -> int:
        """Rows accepted since the last answer."""
        return len(self.out.acks.stream)

    @property
    def says_more(self) -> bool:
        """Whether the answer holds anything but acks."""
        out = self.out
        told = out.begin or out.unknown or out.fenced or out.resend or out.finished or out.cancel
        return bool(told or out.stop or out.pause or out.resume)

    def take(self) -> FromRouter:
        """The answers so far; later ones go into a new message."""
        out, self.out = self.out, FromRouter()
        return out


class Held:
    """One request this router holds. `attach` numbers its client's connection, `bound` is the only author it listens to."""

    __slots__ = (
        "attach",
        "bound",
        "choices",
        "declined",
        "fate",
        "fingerprint",
        "num_cached_tokens",
        "paused",
        "prompt_logprobs",
        "rid",
        "usage",
        "vector_size",
    )

    def __init__(
        self, rid: str, attach: int, num_choices: int, num_logprobs: int | None, sent: Sequence[int] = (), vector_size: int = 0
    ):
        self.rid = rid
        self.vector_size = vector_size  # of what it ends with, 0: with tokens alone
        self.attach = attach
        self.bound: Binding | None = None
        self.fate = Fate.OWED
        self.fingerprint = ""
        # A worker claimed it whose numerics are not those its tokens were made with.
        self.declined = False
        self.paused = False
        self.num_cached_tokens = 0
        self.prompt_logprobs: types_pb2.Logprobs | None = None
        self.usage: types_pb2.Usage | None = None
        self.choices = [
            ChoiceLog(self, index, LogprobColumns(num_logprobs + 1) if num_logprobs is not None else None)
            for index in range(num_choices)
        ]
        for log, num_tokens in zip(self.choices, sent, strict=False):
            log.sent = num_tokens

    @property
    def num_tokens(self) -> int:
        """Output tokens accepted, over all choices."""
        return sum(len(log.token_ids) for log in self.choices)

    @property
    def live(self) -> Link | None:
        """The connection its owner can be spoken to on."""
        return self.bound.link if self.bound is not None and not self.bound.link.closed else None


class Sequencer:
    """All requests of one router, by rid, and what workers say about them."""

    def __init__(self) -> None:
        self.held: dict[str, Held] = {}

    def hold(self, held: Held) -> None:
        """From now on its frames are taken."""
        self.held[held.rid] = held

    def forget(self, held: Held) -> None:
        """From now on its rid is unknown here."""
        if self.held.get(held.rid) is held:
            del self.held[held.rid]
        if (link := held.live) is not None and held.bound is not None:
            link.streams.pop(held.bound.stream, None)
            link.out.unknown.append(held.bound.stream)
            link.wake()
        held.bound = None

    def receive(self, link: Link, message: delivery_pb2.FromWorker) -> None:
        """Takes one message; answers are in `link.out`, readers were told. Raises ProtocolError if it makes no sense."""
        for claimed in message.claimed:
            self._claimed(link, claimed)
        for prompt in message.prompt_logprobs:
            binding = self._listened_to(link, prompt.stream)
            if binding is not None and binding.held.prompt_logprobs is None:
                binding.held.prompt_logprobs = prompt.logprobs
        if len(message.frames.stream) or len(message.frames.token_ids):
            logprobs = {(row.stream, row.choice, row.idx): row.logprobs for row in message.logprobs}
            self._frames(link, message.frames, logprobs)
        for finish in message.finishes:
            self._finish(link, finish)

    def close(self, link: Link) -> list[Binding]:
        """The connection broke: the assignments that were bound to it, for revoking if it is not dialled again."""
        link.closed = True
        bound = [binding for binding in link.streams.values() if binding.held.bound is binding]
        link.streams.clear()
        return bound

    def stop(self, log: ChoiceLog, num_tokens: int) -> None:
        """A stop string ended the choice after num_tokens."""
        del log.token_ids[num_tokens:]
        if log.logprobs is not None:
            log.logprobs.cut(num_tokens)
        log.stopped = True
        if (link := log.held.live) is not None and log.held.bound is not None and log.finish is None:
            link.out.stop.add(stream=log.held.bound.stream, choice=log.index, num_tokens=num_tokens)
            link.wake()

    def finish(self, held: Held, usage: types_pb2.Usage) -> None:
        """The client was given everything: its owner may book `usage`, and the rid stays as a tombstone."""
        held.usage = usage
        link, binding = held.live, held.bound
        crash.point("router.given")
        self._bury(held, Fate.FINISHED)
        if link is not None and binding is not None:
            link.out.finished.add(stream=binding.stream, usage=usage)
            link.wake()

    def cancel(self, held: Held) -> None:
        """Nobody wants it any more: its owner drops it, and the rid stays as a tombstone."""
        link, binding = held.live, held.bound
        self._bury(held, Fate.CANCELLED)
        if link is not None and binding is not None:
            link.out.cancel.append(binding.stream)
            link.wake()

    def pause(self, held: Held, paused: bool) -> None:
        """Its reader is slow, or is no longer; told to its owner, and to every later one."""
        held.paused = paused
        if (link := held.live) is not None and held.bound is not None:
            (link.out.pause if paused else link.out.resume).append(held.bound.stream)
            link.wake()

    def _bury(self, held: Held, fate: Fate) -> None:
        # The number leaves the connection with the last word about it: what the worker still says is answered "unknown",
        # which it reads after that word, when it holds the stream no more.
        if held.bound is not None:
            held.bound.link.streams.pop(held.bound.stream, None)
        held.fate = fate
        held.bound = None
        held.choices = []
        held.prompt_logprobs = None

    def _claimed(self, link: Link, claimed: delivery_pb2.Claimed) -> None:
        if claimed.stream in link.streams:
            raise ProtocolError(f"stream number {claimed.stream} was used twice")
        held = self.held.get(claimed.rid)
        if held is None:
            link.out.unknown.append(claimed.stream)
        elif held.fate is Fate.CANCELLED:
            link.out.cancel.append(claimed.stream)
        elif held.usage is not None:
            link.out.finished.add(stream=claimed.stream, usage=held.usage)
        else:
            binding, bound = Binding(held, claimed.epoch, link, claimed.stream), held.bound
            if bound is not None and claimed.epoch <= bound.epoch and not binding.same_author(bound):
                link.out.fenced.add(stream=claimed.stream, epoch=bound.epoch)
                return
            link.streams[claimed.stream] = binding
            held.bound = binding
            held.declined = bool(held.num_tokens) and held.fingerprint not in ("", link.fingerprint)
            crash.point("router.claimed")
            self._begin(binding)

    def _begin(self, binding: Binding) -> None:
        held, out = binding.held, binding.link.out
        begin = out.begin.add(stream=binding.stream)
        for log in held.choices:
            if log.token_ids or log.ended:
                begin.accepted.add(choice=log.index, token_ids=pack(log.token_ids), finished=log.ended)
                begin.fingerprint = held.fingerprint
        if held.paused:
            out.pause.append(binding.stream)

    def _listened_to(self, link: Link, stream: int) -> Binding | None:
        """The stream's binding if its request listens to it; else the worker is told why not."""
        binding = link.streams.get(stream)
        if binding is None:
            link.out.unknown.append(stream)
            return None
        bound = binding.held.bound
        if bound is binding or (bound is not None and binding.same_author(bound)):
            return binding
        del link.streams[stream]
        if bound is not None:
            link.out.fenced.add(stream=stream, epoch=bound.epoch)
        elif binding.held.fate is Fate.CANCELLED:
            link.out.cancel.append(stream)
        else:
            # Delivered by another, or forgotten: either way not this worker's to end.
            link.out.unknown.append(stream)
        return None

    def _frames(
        self, link: Link, frames: delivery_pb2.Frames, logprobs: Mapping[tuple[int, int, int], types_pb2.Logprobs]
    ) -> None:
        streams, choices, starts, counts = frames.stream, frames.choice, frames.idx, frames.count
        token_ids = list(frames.token_ids)
        if not len(streams) == len(choices) == len(starts) == len(counts) or sum(counts) != len(token_ids):
            raise ProtocolError("the columns of a frame differ in length")
        acked_streams, acked_choices, acked_tokens = [], [], []
        at = 0
        for stream, choice, idx, count in zip(streams, choices, starts, counts, strict=True):
            end = at + count
            binding = self._listened_to(link, stream)
            if binding is not None:
                log = _choice(binding, choice)
                num_tokens = len(log.token_ids)
                if not log.ended and idx > num_tokens:
                    link.out.resend.add(stream=stream, choice=choice, idx=num_tokens)
                else:
                    if idx == num_tokens and not log.ended:
                        self._accept(log, token_ids[at:end], link, logprobs.get((stream, choice, idx)))
                    acked_streams.append(stream)
                    acked_choices.append(choice)
                    acked_tokens.append(len(log.token_ids))
            at = end
        if acked_streams:
            crash.point("router.frames")
        link.out.acks.stream.extend(acked_streams)
        link.out.acks.choice.extend(acked_choices)
        link.out.acks.num_tokens.extend(acked_tokens)

    def _accept(self, log: ChoiceLog, token_ids: list[int], link: Link, logprobs: types_pb2.Logprobs | None) -> None:
        columns = log.logprobs
        if columns is not None:
            shape = (columns.width, columns.width * len(token_ids), columns.width * len(token_ids))
            if logprobs is None or shape != (logprobs.width, len(logprobs.token_ids), len(logprobs.logprobs)):
                raise ProtocolError("tokens came without the log-probabilities that were asked for")
            columns.token_ids.extend(logprobs.token_ids)
            columns.logprobs.extend(logprobs.logprobs)
        log.token_ids += token_ids
        log.held.fingerprint = link.fingerprint
        if log.sink is not None:
            log.sink.grew()

    def _finish(self, link: Link, finish: delivery_pb2.Finish) -> None:
        binding = self._listened_to(link, finish.stream)
        if binding is None:
            return
        log = _choice(binding, finish.choice)
        num_tokens = len(log.token_ids)
        if not log.ended:
            if finish.num_tokens > num_tokens:
                link.out.resend.add(stream=finish.stream, choice=finish.choice, idx=num_tokens)
                return
            if finish.num_tokens < num_tokens and finish.reason != types_pb2.FINISH_REASON_ERROR:
                raise ProtocolError("a choice ended before tokens that were already accepted")
            if finish.reason != types_pb2.FINISH_REASON_ERROR and len(finish.vector) != 4 * binding.held.vector_size:
                raise ProtocolError("a request ended without the vector that was asked for")
            log.finish = finish
            binding.held.num_cached_tokens = max(binding.held.num_cached_tokens, finish.num_cached_tokens)
            if log.sink is not None:
                log.sink.grew()
        link.out.acks.stream.append(finish.stream)
        link.out.acks.choice.append(finish.choice)
        link.out.acks.num_tokens.append(num_tokens)


def _choice(binding: Binding, choice: int) -> ChoiceLog:
    if choice >= len(binding.held.choices):
        raise ProtocolError(f"choice {choice} was not asked for")
    return binding.held.choices[choice]


def pack(token_ids: Sequence[int]) -> bytes:
    """Ids as little-endian uint32."""
    packed = array("I", token_ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack(packed: bytes) -> list[int]:
    """What `pack` was given."""
    ids = array("I", packed)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tolist()
