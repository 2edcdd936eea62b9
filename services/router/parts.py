"""What a model said, in parts: text, reasoning and calls of tools, and how each choice ended. Every dialect answers from these.

A reader turns one generation's events into parts. All parts of one event belong to its position: who answers must give
them together, or without a position, so that a client that comes back gets none twice. Of a stream that is taken up
elsewhere, what the client has is read again and not given again. It knows nothing of tokens beyond their bytes, nor of
how parts are shown.
"""

import codecs
import hashlib
from collections.abc import Sequence
from typing import Literal

import msgspec

from services.router.generate import ChoiceEnd, Event, Generation, TextDelta
from services.router.needs import Vocabulary
from services.router.parsers import REASONING, TOOLS
from services.router.parsers.pieces import Piece
from shared.pb import types_pb2

Reason = Literal["stop", "length", "tool_calls"]

_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class Said(msgspec.Struct, frozen=True, gc=False):
    """Text of one choice; `event` is what it came with."""

    choice: int
    kind: Literal["content", "reasoning"]
    text: str
    event: Event


class CallBegun(msgspec.Struct, frozen=True, gc=False):
    """The choice calls a tool, its `call`th, counted from 0."""

    choice: int
    call: int
    id: str
    name: str


class CallArguments(msgspec.Struct, frozen=True, gc=False):
    """More of the JSON text of a call's arguments."""

    choice: int
    call: int
    text: str


class Done(msgspec.Struct, frozen=True, gc=False):
    """The choice ended; `event` says with how many tokens and where."""

    choice: int
    num_reasoning_tokens: int
    reason: Reason
    stop_string: str | None
    stop_token_id: int | None
    event: ChoiceEnd


Part = Said | CallBegun | CallArguments | Done


def call_id(rid: str, choice: int, call: int, *, short: bool = False) -> str:
    """The same on every router. short: nine letters and digits, as Mistral's templates want them."""
    number = int.from_bytes(hashlib.sha256(f"{rid}:{choice}:{call}".encode()).digest(), "little")
    letters = []
    for _ in range(9 if short else 24):
        number, digit = divmod(number, len(_LETTERS))
        letters.append(_LETTERS[digit])
    return "".join(letters) if short else "call_" + "".join(letters)


class PartReader:
    """Reads one generation."""

    def __init__(self, generation: Generation, vocabulary: Vocabulary) -> None:
        self._generation = generation
        self._reading = generation.reading or types_pb2.Reading()
        self._vocabulary = vocabulary
        self._choices: dict[int, _Choice] = {}

    def read(self, event: Event) -> list[Part]:
        """The parts that became certain; with the end of a choice, what was held back, and Done as the last."""
        choice = self._choices.get(event.choice)
        if choice is None:
            choice = self._choices[event.choice] = self._begin(event.choice)
        if isinstance(event, TextDelta):
            return self._shown(choice, choice.read(event.text, event.token_ids, self._vocabulary), event)
        parts = self._shown(choice, choice.finish(), event)
        # What was cut short stays so; a client must not take a half of a call for a whole one.
        reason: Reason = "tool_calls" if choice.num_calls and event.reason == "stop" else event.reason
        parts.append(Done(event.choice, choice.num_reasoning_tokens, reason, event.stop_string, event.stop_token_id, event))
        return parts

    def _begin(self, index: int) -> "_Choice":
        choice = _Choice(self._reading)
        begun = self._generation.begun_token_ids(index)
        if begun:
            hidden = self._vocabulary.special if self._generation.skips_special else frozenset()
            data = b"".join(self._vocabulary.bytes_of(token_id) for token_id in begun if token_id not in hidden)
            self._shown(choice, choice.read(data.decode("utf-8", "replace"), begun, self._vocabulary), None)
        return choice

    def _shown(self, choice: "_Choice", pieces: Sequence[Piece], event: Event | None) -> list[Part]:
        """The pieces as parts; without an event they are only counted."""
        parts: list[Part] = []
        for kind, text in pieces:
            if kind == "call":
                choice.num_calls += 1
            at = choice.num_calls - 1
            if event is None or (kind in ("call", "arguments") and at and self._reading.one_call):
                continue
            if kind == "call":
                short = self._reading.tool_parser == "mistral"
                parts.append(CallBegun(event.choice, at, call_id(self._generation.rid, event.choice, at, short=short), text))
            elif kind == "arguments":
                parts.append(CallArguments(event.choice, at, text))
            elif kind == "content" or not self._reading.hide_reasoning:
                parts.append(Said(event.choice, kind, text, event))
        return parts


class _Choice:
    """One choice's parsers: calls are looked for in what is not reasoning."""

    def __init__(self, reading: types_pb2.Reading) -> None:
        self._think = REASONING[reading.reasoning_parser](reading) if reading.reasoning_parser in REASONING else None
        self._tools = TOOLS[reading.tool_parser].parser(reading) if reading.tool_parser in TOOLS else None
        self._num_chars = self._num_tokens = 0
        self.num_calls = 0
        self.num_reasoning_tokens = 0

    def read(self, text: str, token_ids: Sequence[int], vocabulary: Vocabulary) -> list[Piece]:
        """The pieces of new text, which came with these tokens."""
        think = self._think
        if think is None:
            return self._calls_in([("content", text)])
        was_ended, num_chars = think.num_chars is not None, self._num_chars
        pieces = think.feed(text)
        self._num_chars += len(text)
        self._num_tokens += len(token_ids)
        if think.is_reasoning:
            self.num_reasoning_tokens = self._num_tokens
        elif think.num_chars is not None and not was_ended:
            num_after = len(token_ids) - _num_within(think.num_chars - num_chars, token_ids, vocabulary)
            self.num_reasoning_tokens = self._num_tokens - num_after
        return self._calls_in(pieces)

    def finish(self) -> list[Piece]:
        """The pieces that were held back."""
        pieces = [] if self._think is None else self._calls_in(self._think.finish())
        return pieces if self._tools is None else pieces + self._tools.finish()

    def _calls_in(self, pieces: list[Piece]) -> list[Piece]:
        if self._tools is None:
            return [piece for piece in pieces if piece[1]]
        read: list[Piece] = []
        for piece in pieces:
            if piece[0] == "content":
                read += self._tools.feed(piece[1])
            else:
                read.append(piece)
        return read


def _num_within(num_chars: int, token_ids: Sequence[int], vocabulary: Vocabulary) -> int:
    """How many of the tokens begin within the first `num_chars` characters of their text."""
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    for index, token_id in enumerate(token_ids):
        if num_chars <= 0:
            return index
        num_chars -= len(decode(vocabulary.bytes_of(token_id)))
    return len(token_ids)
