"""What one assignment owes its router: the whole log of each choice, and a window of it in flight. Protocol §5.

    0 ........ acked ........ sent ........ len(log)
    |  the router has it  |  in flight  |  waits for the window, or for Begin

The log is kept for as long as the assignment is held, so a re-dial replays from it without computing anything again.
Pure: no clock, no I/O, no tasks. It knows nothing of Redis, of connections or of the engine's thread.
"""

import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from services.worker.engine.engine import Delta, Finish, Work
from services.worker.engine.step import TokenLogprobs
from shared.errors import InternalError, RoadtrainError, as_object
from shared.pb import delivery_pb2, types_pb2

WINDOW_TOKENS = 4096
MESSAGE_TOKENS = 8192

REASONS: Mapping[str, types_pb2.FinishReason] = {
    "stop": types_pb2.FINISH_REASON_STOP,
    "length": types_pb2.FINISH_REASON_LENGTH,
    "error": types_pb2.FINISH_REASON_ERROR,
}


@dataclass(slots=True)
class ChoiceLog:
    """One choice. `logprobs` are those of log[logprob_base:]; tokens before were made elsewhere and are accepted.

    `settled`: the router knows its end (it accepted it, or found it itself), so nothing more is sent of it.
    """

    log: "array[int]" = field(default_factory=lambda: array("I"))
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    logprob_base: int = 0
    finish: Finish | None = None
    settled: bool = False
    sent: int = 0
    acked: int = 0
    finish_sent: bool = False

    @property
    def ended(self) -> bool:
        """No token of it is wanted any more."""
        return self.settled or self.finish is not None


class Message:
    """One FromWorker being filled, up to about MESSAGE_TOKENS tokens. Frames are gathered in lists, cheaper to append to."""

    __slots__ = ("_body", "_choices", "_counts", "_starts", "_streams", "_token_ids", "room")

    def __init__(self) -> None:
        self.room = MESSAGE_TOKENS
        self._body: delivery_pb2.FromWorker | None = None
        self._streams: list[int] = []
        self._choices: list[int] = []
        self._starts: list[int] = []
        self._counts: list[int] = []
        self._token_ids: list[int] = []

    @property
    def body(self) -> delivery_pb2.FromWorker:
        """The message, for all that is no frame."""
        if self._body is None:
            self._body = delivery_pb2.FromWorker()
        return self._body

    @property
    def num_rows(self) -> int:
        """Rows of frames so far."""
        return len(self._streams)

    def add_tokens(self, stream: int, choice: int, idx: int, ids: Sequence[int]) -> None:
        """A row of frames."""
        self._streams.append(stream)
        self._choices.append(choice)
        self._starts.append(idx)
        self._counts.append(len(ids))
        self._token_ids += ids
        self.room -= len(ids)

    def whole(self) -> delivery_pb2.FromWorker | None:
        """The message with its frames; None if nothing was put in."""
        if self._streams:
            frames = self.body.frames
            frames.stream.extend(self._streams)
            frames.choice.extend(self._choices)
            frames.idx.extend(self._starts)
            frames.count.extend(self._counts)
            frames.token_ids.extend(self._token_ids)
        return self._body


@dataclass(slots=True, eq=False)
class Outbound:
    """One assignment (rid, epoch). `work` is what the engine runs of it now, with the outputs it started from.

    stream: its number on the present connection, 0 while it has none; begun: the router answered Claimed there.
    """

    rid: str
    epoch: int
    router: str
    attach: int
    work: Work
    choices: list[ChoiceLog]
    failure: RoadtrainError | None = None
    stream: int = 0
    begun: bool = False
    paused: bool = False
    prompt_logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs_sent: bool = False
    num_cached_tokens: int = 0

    @classmethod
    def of(cls, work: Work, *, router: str, attach: int) -> "Outbound":
        """An assignment that has produced nothing yet."""
        rid, epoch = work.key
        return cls(rid, epoch, router, attach, work, [ChoiceLog() for _ in range(work.params.n)])

    @property
    def num_tokens(self) -> int:
        """Output tokens known, over all choices: what `renew` reports as progress."""
        return sum(len(choice.log) for choice in self.choices)

    @property
    def ended(self) -> bool:
        """Whether every choice has."""
        return all(choice.ended for choice in self.choices)

    def usage(self) -> types_pb2.Usage:
        """What it cost if it ends now: of the output, what the router accepted."""
        return types_pb2.Usage(
            num_prompt_tokens=len(self.work.prompt),
            num_cached_tokens=self.num_cached_tokens,
            num_output_tokens=sum(choice.acked for choice in self.choices),
        )

    def extend(self, delta: Delta) -> None:
        """Logs what the engine produced; what an earlier Work of this assignment gave is not taken."""
        if delta.work is not self.work:
            return
        choice = self.choices[delta.choice]
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs
        if choice.settled or choice.finish is not None:
            return
        log = choice.log
        if delta.idx != len(log):
            raise RuntimeError(f"the engine gave token {delta.idx} of a choice that has {len(log)}")
        log.extend(delta.token_ids)
        if delta.logprobs is not None:
            choice.logprobs += delta.logprobs
        if delta.finish is not None:
            choice.finish = delta.finish
            self.num_cached_tokens = delta.finish.num_cached_tokens

    def fail(self, failure: RoadtrainError) -> None:
        """Ends every choice that has not ended with an error for the client to read."""
        self.failure = failure
        for choice in self.choices:
            if not choice.ended:
                choice.finish = Finish("error", len(choice.log), error=failure.message)

    def detach(self) -> None:
        """The connection is gone, or another is meant: frames wait for the next Begin."""
        self.stream, self.begun = 0, False

    def begin(self, accepted: "Mapping[int, tuple[array[int], bool]]") -> bool:
        """Takes Begin: by choice, the ids the router accepted and whether it accepted the end. Those ids win.

        True when the engine's run no longer fits and `restart` must be submitted; own log beyond the ids is re-sent.
        """
        differs = False
        # An adopting router starts empty and wants the prompt's logprobs, which a resumed run never made.
        lost = self._wants_prompt_logprobs and not any(len(ids) or end for ids, end in accepted.values())
        lost = lost and self.prompt_logprobs is None and any(self.work.outputs.values())
        for number, choice in enumerate(self.choices):
            ids, settled = accepted.get(number, (array("I"), False))
            keeps = len(ids) <= len(choice.log) and choice.log[: len(ids)] == ids and self._can_send_from(choice, len(ids))
            if settled:
                differs |= not choice.ended
                choice.log, choice.settled = ids, True
            elif lost or not keeps or choice.settled:
                differs = True
                choice.log, choice.logprobs, choice.logprob_base = ids, [], len(ids)
                choice.finish, choice.settled = None, False
            choice.sent = choice.acked = len(ids)
            choice.finish_sent = False
        self.prompt_logprobs_sent = any(len(ids) or end for ids, end in accepted.values())
        self.begun = True
        return differs

    @property
    def _wants_prompt_logprobs(self) -> bool:
        return self.work.params.num_prompt_logprobs is not None

    def _can_send_from(self, choice: ChoiceLog, idx: int) -> bool:
        return self.work.params.num_logprobs is None or idx >= choice.logprob_base

    def restart(self) -> Work:
        """The work that goes on from the log as it is; becomes the present one."""
        outputs = {number: choice.log[:] for number, choice in enumerate(self.choices) if choice.log}
        ended = frozenset(number for number, choice in enumerate(self.choices) if choice.ended)
        self.work = replace(self.work, outputs=outputs, ended=ended)
        return self.work

    def ack(self, number: int, num_tokens: int) -> bool:
        """The router accepted that many; cumulative, a late one changes nothing. Whether tokens wait to be sent."""
        choice = self.choices[number]
        num_known = len(choice.log)
        choice.acked = min(max(choice.acked, num_tokens), num_known)
        return choice.sent < num_known

    def resend(self, number: int, idx: int) -> None:
        """The router misses tokens from idx on."""
        choice = self.choices[number]
        choice.sent = min(idx, len(choice.log)) if self._can_send_from(choice, idx) else choice.logprob_base
        choice.acked = min(choice.acked, choice.sent)
        choice.finish_sent = False

    def stop(self, number: int, num_tokens: int) -> None:
        """The router found a stop string that ends after num_tokens: it knows this choice's end."""
        choice = self.choices[number]
        del choice.log[num_tokens:]
        del choice.logprobs[max(0, num_tokens - choice.logprob_base) :]
        choice.settled = True
        choice.sent = choice.acked = len(choice.log)

    def fill(self, message: Message) -> bool:
        """Moves what may be sent now into `message`; True when more is left for a next one."""
        if not self.begun:
            return False
        if self.prompt_logprobs is not None and not self.prompt_logprobs_sent:
            columns = _columns(self.prompt_logprobs, self.work.params.num_prompt_logprobs or 0)
            message.body.prompt_logprobs.add(stream=self.stream, logprobs=columns)
            message.room -= len(self.prompt_logprobs)
            self.prompt_logprobs_sent = True
        more = False
        for number, choice in enumerate(self.choices):
            if not choice.settled:
                more |= self._fill_choice(number, choice, message)
        return more

    def _fill_choice(self, number: int, choice: ChoiceLog, message: Message) -> bool:
        allowed = min(len(choice.log), choice.acked + WINDOW_TOKENS)
        end = min(allowed, choice.sent + max(0, message.room))
        if end > choice.sent:
            message.add_tokens(self.stream, number, choice.sent, choice.log[choice.sent : end])
            if self.work.params.num_logprobs is not None:
                rows = choice.logprobs[choice.sent - choice.logprob_base : end - choice.logprob_base]
                columns = _columns(rows, self.work.params.num_logprobs)
                message.body.logprobs.add(stream=self.stream, choice=number, idx=choice.sent, logprobs=columns)
            choice.sent = end
        if choice.finish is not None and not choice.finish_sent and choice.sent == len(choice.log):
            if choice.finish.vector is not None:
                if message.room <= 0:
                    return True
                message.room -= len(choice.finish.vector) // 4
            message.body.finishes.append(self._finish(number, choice.finish))
            choice.finish_sent = True
        return end < allowed

    def _finish(self, number: int, finish: Finish) -> delivery_pb2.Finish:
        message = delivery_pb2.Finish(
            stream=self.stream,
            choice=number,
            num_tokens=finish.num_tokens,
            reason=REASONS[finish.reason],
            stop_token_id=finish.stop_token_id,
            num_cached_tokens=finish.num_cached_tokens,
            vector=finish.vector or b"",
        )
        if finish.error is not None:
            fields = as_object(self.failure or InternalError(finish.error))
            message.error.CopyFrom(types_pb2.Error(**{name: value or "" for name, value in fields.items()}))
        return message


def accepted_ids(begin: delivery_pb2.Begin, vocab_size: int) -> "dict[int, tuple[array[int], bool]]":
    """What Begin says was accepted, by choice. Raises ValueError if its bytes are no token ids."""
    accepted = {row.choice: (unpack(row.token_ids), row.finished) for row in begin.accepted}
    if any(max(ids, default=0) >= vocab_size for ids, _ in accepted.values()):
        raise ValueError("a router accepted what is no token id")
    return accepted


def unpack(packed: bytes) -> "array[int]":
    """Ids that travel as little-endian uint32. Raises ValueError if the length is wrong."""
    ids = array("I")
    ids.frombytes(packed)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids


def _columns(rows: Sequence[TokenLogprobs], num_alternatives: int) -> types_pb2.Logprobs:
    columns = types_pb2.Logprobs(width=1 + num_alternatives)
    for row in rows:
        columns.token_ids.extend(row.token_ids)
        columns.logprobs.extend(row.logprobs)
    return columns
