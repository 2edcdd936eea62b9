"""One choice on its way from accepted ids to events: what was decoded, what was given, what ended it.

It knows nothing of workers, streams or who reads the events.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol
from zlib import crc32

import msgspec

from services.router.sequencer import ChoiceLog, pack
from shared.pb import delivery_pb2, tokenizer_pb2, types_pb2

EndReason = Literal["stop", "length"]


class TextDelta(msgspec.Struct, frozen=True, gc=False):
    """New text of one choice, and the tokens whose text has wholly been given with it.

    `token_ids` and `num_tokens` (all given so far in this choice) may lag behind `text` by a token whose text is partly
    held back. `logprobs` has one row per entry of `token_ids`, or is None if none were asked for. `position` is the
    event id to resume after: `rid:i0.i1…:h`. With `echo`, a choice's text begins with the prompt's, without tokens.
    """

    choice: int
    text: str
    token_ids: list[int]
    num_tokens: int
    logprobs: types_pb2.Logprobs | None
    position: str


class ChoiceEnd(msgspec.Struct, frozen=True, gc=False):
    """One choice ended, after its last TextDelta; `num_tokens` are its output tokens, the stop token included.

    With reason "stop", at most one of `stop_string` and `stop_token_id` says what ended it; `stop_reason` is the one of
    them that the request asked for, None at the model's own end. `vector` is what a request for one ended with, float32
    little-endian.
    """

    choice: int
    reason: EndReason
    num_tokens: int
    stop_string: str | None
    stop_token_id: int | None
    position: str
    vector: bytes = b""
    stop_reason: str | int | None = None


Event = TextDelta | ChoiceEnd

_REASONS: dict[int, EndReason] = {types_pb2.FINISH_REASON_STOP: "stop", types_pb2.FINISH_REASON_LENGTH: "length"}


class Owner(Protocol):
    """The request a choice belongs to."""

    def push(self, choice: "ChoiceText") -> None:
        """It has ids to decode, or its end is known."""

    def offer(self, choice: "ChoiceText") -> None:
        """It has something for the client."""

    def stop(self, log: ChoiceLog, num_tokens: int) -> None:
        """A stop string ended it."""

    def told(self) -> None:
        """It ended without ids to decode."""

    def failed(self, finish: delivery_pb2.Finish) -> None:
        """Its worker gave it up."""

    def undecodable(self) -> None:
        """The tokenizer does not take its ids."""

    def position(self) -> str:
        """Event id after what all choices have given."""


@dataclass(frozen=True, slots=True)
class DecodeRule:
    """How a request's ids become text. `hidden_token_ids` end a choice without showing their own text.

    echo_given: the client has the text of `echo_token_ids` already. prompt_only: it gets that text and no output.
    """

    stop: tuple[str, ...]
    include_stop: bool
    skip_special: bool
    min_tokens: int
    hidden_token_ids: frozenset[int]
    echo_token_ids: Sequence[int]
    echo_given: bool = False
    prompt_only: bool = False
    stop_token_ids: frozenset[int] = frozenset()


class ChoiceText:
    """One choice; the sequencer tells it when it grew, the decoder takes its ids and brings text, its owner collects events."""

    __slots__ = (
        "_num_echo_chars",
        "_num_skipped_chars",
        "_owner",
        "_parts",
        "_rule",
        "_stop_index",
        "crc",
        "exhausted",
        "log",
        "may_be_plain",
        "num_based",
        "num_based_chars",
        "num_chars",
        "num_decoded",
        "num_given",
        "num_taken",
        "number",
        "offered",
        "over",
        "plain",
        "queued",
    )

    def __init__(self, log: ChoiceLog, rule: DecodeRule, owner: Owner):
        self._owner = owner
        self._rule = rule
        self._parts: list[str] = []
        self._stop_index: int | None = None
        self.log = log
        self.number = 0
        self.queued = False
        self.exhausted = False
        # The tokenizer leaves out the text that a client has already.
        self.may_be_plain = self.plain = not (rule.stop or rule.echo_token_ids or log.sent)
        self.num_based = self.num_based_chars = 0
        self.num_taken = 0  # ids handed to the decoder
        self.num_chars = 0  # characters that came back
        self.num_decoded = 0  # ids whose text has wholly come back
        self.num_given = 0  # ids given to the client
        self.crc = 0  # of the ids given
        self.offered = False
        self.over = False
        # Of the prompt's text, which a stream gives back first; None until it has come, alone in its row.
        self._num_echo_chars: int | None = None if rule.echo_token_ids else 0
        self._num_skipped_chars = 0
        log.sink = self

    def grew(self) -> None:
        """See sequencer.Sink."""
        finish = self.log.finish
        if finish is not None and finish.reason not in _REASONS:
            self._owner.failed(finish)
        elif finish is not None and finish.vector:
            self.drained()
            self._owner.told()
        else:
            self._owner.push(self)

    def opening(self) -> tokenizer_pb2.OpenDecode:
        """See decode.Reader."""
        rule = self._rule
        self.exhausted = False
        if self._num_echo_chars is None:
            self.num_taken = 0
        else:
            self._num_skipped_chars = self._num_echo_chars
        return tokenizer_pb2.OpenDecode(
            stop=rule.stop,
            include_stop=rule.include_stop,
            skip_special=rule.skip_special,
            min_tokens=rule.min_tokens,
            prior_token_ids=pack(self.log.token_ids[self.num_based : self.num_taken]),
            num_prior_chars=self.num_chars - self.num_based_chars,
            echo_token_ids=pack(rule.echo_token_ids),
            num_given_tokens=self.log.sent,
        )

    def take(self) -> Sequence[int]:
        """See decode.Reader. A token that may prove to have ended the choice waits until that is known."""
        log = self.log
        token_ids = log.token_ids
        end = len(token_ids)
        if self._num_echo_chars is None:
            return ()
        if log.finish is not None:
            self.exhausted = True
        if self._rule.prompt_only:
            return ()
        if log.finish is not None:
            if log.finish.HasField("stop_token_id") and self._rule.hidden_token_ids:
                end -= 1
        elif end and token_ids[-1] in self._rule.hidden_token_ids:
            end -= 1
        taken = token_ids[self.num_taken : end]
        self.num_taken = max(self.num_taken, end)
        return taken

    def rebase(self) -> None:
        """See decode.Reader."""
        self.num_based, self.num_based_chars = self.num_taken, self.num_chars

    def decoded(self, text: str, num_tokens: int) -> None:
        """See decode.Reader."""
        if self._num_echo_chars is None:
            self._num_echo_chars = len(text)
            self._owner.push(self)
            if self._rule.echo_given:
                text = ""
        elif self._num_skipped_chars:
            text, self._num_skipped_chars = text[self._num_skipped_chars :], 0
            self.num_chars += len(text)
        else:
            self.num_chars += len(text)
        if num_tokens > self.num_decoded:
            self.num_decoded = num_tokens
        if text:
            self._parts.append(text)
        self._owner.offer(self)

    def stopped(self, num_tokens: int, stop_index: int) -> None:
        """See decode.Reader."""
        self._owner.stop(self.log, num_tokens)
        self._stop_index = stop_index
        self.drained()

    def refused(self) -> None:
        """See decode.Reader."""
        self._owner.undecodable()

    def drained(self) -> None:
        """See decode.Reader."""
        if self._rule.prompt_only:
            self._owner.stop(self.log, 0)
        self.num_decoded = len(self.log.token_ids)
        self.over = True
        self._owner.offer(self)

    def collect(self, events: list[Event]) -> None:
        """Appends what has not been given yet, and counts it as given."""
        log = self.log
        start, end = self.num_given, self.num_decoded
        text = "".join(self._parts)
        if text or end > start:
            self._parts.clear()
            self._count(end)
            logprobs = log.logprobs.rows(start, end) if log.logprobs is not None else None
            position = self._owner.position()
            events.append(TextDelta(log.index, text, log.token_ids[start:end], self.num_given, logprobs, position))
        if self.over:
            events.append(self._end())

    def skip_sent(self) -> None:
        """The client has these."""
        self._count(min(self.log.sent, len(self.log.token_ids)))

    def _count(self, end: int) -> None:
        start = self.num_given
        if end == start + 1:
            # One token at a time is the rule; packing it alone is four times as fast.
            self.crc = crc32(self.log.token_ids[start].to_bytes(4, "little"), self.crc)
            self.num_given = end
        elif end > start:
            self.crc = crc32(pack(self.log.token_ids[start:end]), self.crc)
            self.num_given = end

    def _end(self) -> ChoiceEnd:
        log, finish = self.log, self.log.finish
        reason: EndReason = "stop"
        stop_string: str | None = None
        stop_token_id: int | None = None
        vector = b""
        if self._rule.prompt_only:
            reason = "length"
        elif self._stop_index is not None:
            stop_string = self._rule.stop[self._stop_index]
        elif finish is not None:
            reason = _REASONS[finish.reason]
            stop_token_id = finish.stop_token_id if finish.HasField("stop_token_id") else None
            vector = finish.vector
        asked = stop_token_id if stop_token_id in self._rule.stop_token_ids else stop_string
        position = self._owner.position()
        return ChoiceEnd(log.index, reason, len(log.token_ids), stop_string, stop_token_id, position, vector, asked)
